"""Collect demonstrations at the workbench: the expert at work, and what remains of several tasks."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vla.tabletop import collection as tabletop
from vla.tabletop.collection import FIRST_SCENE, SEED_STRIDE, Fingers, in_processes, whole
from vla.tabletop.simulator import ACTION, ACTION_HIGH, BLOCK_HALF, CAMERA, CONTROL_HZ, STATE
from vla.workbench.commands import LONGEST, NOTHING, STEPS, TASKS, Step, Task, kind
from vla.workbench.demonstrations import DESCRIPTION, Demonstrations, Description
from vla.workbench.expert import expert_action, expert_chunk
from vla.workbench.simulator import BLOCK_X, THINGS, Workbench

# Standard deviation of the noise on the executed action, as a share of the action bound; by episode.
NOISE_LEVELS = (0.0, 0.2, 0.45)
EPISODE_FRAMES = 45
# Tasks that each frame is labelled with.
LABELLED = 4
# Shares of the episodes that begin with an open drawer, and with a block in the hand: letting go takes few
# frames of a task, and more of them are needed than whole tasks have.
OPENED, HELD = 0.5, 0.6
# So long it is carried at most before the episode begins [control steps].
CARRIED = 10
# How much more often than others tasks that begin with these skills label a frame.
OFTEN = {"place": 3.0, "open": 2.0}
# A block is pushed where it stands on the table, x and z at most [m], as blocks do at reset or a little on.
PUSHED_FROM = (BLOCK_X[0] - 0.01, BLOCK_HALF + 0.004)
# All aims of the tasks.
AIMS = frozenset(aim for task in TASKS for aim in task)
# Beyond this distance from the origin, x and y, a block is lost, and the episode ends [m].
LOST = (0.18, 0.23)


@dataclass(frozen=True)
class Collection(tabletop.Collection):
    """Collect demonstrations of the scripted expert at the workbench into a folder."""

    out: Path = Path("data/workbench")
    episodes: int = 500
    # The workbench is drawn in its plain look alone.
    varied: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.varied:
            raise ValueError(f"varied must be 0: the workbench has one look, got {self.varied}")


class Episode(NamedTuple):
    """One demonstration of ``n`` frames; arrays as in `vla.workbench.demonstrations`."""

    images: NDArray[np.uint8]
    state: NDArray[np.float32]
    task: NDArray[np.int32]
    plan: NDArray[np.int64]
    actions: NDArray[np.float32]
    things: NDArray[np.float32]
    # Tasks that were pursued to the end.
    finished: int


def collect(config: Collection) -> Demonstrations:
    """Collect and write a data set, whole or not at all, and load it.

    Raises ``FileExistsError`` if the folder exists and ``overwrite`` is not set.
    """
    if config.out.exists() and not config.overwrite:
        raise FileExistsError(f"{config.out} exists; choose another --out or pass --overwrite")
    task = functools.partial(
        demonstrate,
        seed=config.seed,
        horizon=config.horizon,
        image_size=config.image_size,
        early=config.early,
    )
    found = in_processes(task, config.episodes, config.workers)
    episodes = list(tqdm(found, total=config.episodes, unit="episode", desc=str(config.out)))
    with whole(config.out) as folder:
        _write(folder, episodes, config)
    return Demonstrations.load(config.out)


def demonstrate(index: int, seed: int, horizon: int, image_size: int, *, early: float = 0.0) -> Episode:
    """Collect episode `index` of the data set `seed`; depends on nothing but its arguments.

    A task that is done is followed by another one; the episode ends with a push, or when a block is lost.
    """
    env = _simulator()
    random = np.random.default_rng([seed, index, 2])
    level = NOISE_LEVELS[index % len(NOISE_LEVELS)]
    env.reset(FIRST_SCENE + seed * SEED_STRIDE + index, TASKS[0], opened=bool(random.random() < OPENED))
    fingers = Fingers(random, early)
    frames: list[tuple[NDArray, ...]] = []
    pursued, finished = _begun(env, random), 0
    while len(frames) < EPISODE_FRAMES and not _lost(env):
        frames.append(
            (env.render(image_size), env.state(), *_labels(env, random, pursued, horizon), env.things())
        )
        action = expert_action(env, _next(env.remaining(pursued, clearly=True)))
        gripper = fingers.command(action[3], env.state(), env.blocks())
        env.step(np.append(action[:3], gripper) + random.normal(0, level, 4) * ACTION_HIGH)
        if not env.remaining(pursued, clearly=True):
            finished += 1
            if pursued[-1].verb == "push":
                break
            pursued = _drawn(random, _possible(env))
    return Episode(*map(np.stack, zip(*frames, strict=True)), finished=finished)


def _labels(
    env: Workbench, random: np.random.Generator, pursued: Task, horizon: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]:
    """Return the tasks that this moment is labelled with, their plans and their next steps' chunks."""
    possible = _possible(env)
    first = _next(env.remaining(pursued, clearly=True))
    others = [step for step in possible if step != first]
    weights = np.array([OFTEN.get(step.skill, 1.0) for step in others])
    count = min(len(others), LABELLED - 1)
    chosen = random.choice(len(others), count, replace=False, p=weights / weights.sum())
    drawn = [possible[others[each]] for each in chosen]
    tasks = [pursued, *(each[random.integers(len(each))] for each in drawn)]
    tasks += [pursued] * (LABELLED - len(tasks))
    plans = [env.remaining(task, clearly=True) for task in tasks]
    filled = [(*plan, *[NOTHING] * LONGEST)[:LONGEST] for plan in plans]
    chunks = [expert_chunk(env, plan[0], horizon) for plan in filled]
    indices = [[STEPS.index(step) for step in plan] for plan in filled]
    return np.array([TASKS.index(task) for task in tasks], np.int32), np.array(indices), np.stack(chunks)


def _begun(env: Workbench, random: np.random.Generator) -> Task:
    """Draw what is pursued first; where a block is to be held, the expert picks and carries it so far."""
    possible = _possible(env)
    if random.random() >= HELD:
        return _drawn(random, possible)
    puts = {
        step: [task for task in tasks if task[0].verb == "put"]
        for step, tasks in possible.items()
        if step.skill == "pick"
    }
    task, further = _drawn(random, puts), int(random.integers(CARRIED))
    while (step := _next(env.remaining(task, clearly=True))).skill in ("pick", "place"):
        further -= step.skill == "place"
        if further < 0 or env.steps >= EPISODE_FRAMES:
            return task
        env.step(expert_action(env, step))
    return _drawn(random, _possible(env))


def _possible(env: Workbench) -> dict[Step, list[Task]]:
    """Return the tasks that can be asked for now, by the step that they need next."""
    found: dict[Step, list[Task]] = {}
    needed = {aim: env.needed(aim, clearly=True) for aim in AIMS}
    for task in TASKS:
        if task[-1].verb == "push" and not _pushable(env, task[-1].thing):
            continue
        steps = next((needed[aim] for aim in task if needed[aim]), ())
        found.setdefault(_next(steps), []).append(task)
    return found


def _pushable(env: Workbench, block: str) -> bool:
    x, _, z = env.block(block)
    return x >= PUSHED_FROM[0] and z <= PUSHED_FROM[1]


def _drawn(random: np.random.Generator, possible: dict[Step, list[Task]]) -> Task:
    """Draw a task that is not done; what they begin with alike."""
    kinds: dict[str, list[Task]] = {}
    for step, tasks in possible.items():
        for task in tasks if step != NOTHING else ():
            kinds.setdefault(kind(task[0]), []).append(task)
    tasks = kinds[sorted(kinds)[random.integers(len(kinds))]]
    return tasks[random.integers(len(tasks))]


def _next(steps: tuple[Step, ...]) -> Step:
    return steps[0] if steps else NOTHING


def _lost(env: Workbench) -> bool:
    return bool((np.abs(env.blocks()[:, :2]) > LOST).any())


@functools.cache
def _simulator() -> Workbench:
    """One simulator a process: its renderer is slow to make."""
    return Workbench()


def _write(folder: Path, episodes: list[Episode], config: Collection) -> None:
    """Write the arrays and, last, the description."""
    lengths = [len(episode.state) for episode in episodes]
    description = Description(
        camera=CAMERA,
        image_size=config.image_size,
        control_hz=CONTROL_HZ,
        horizon=config.horizon,
        state=STATE,
        action=ACTION,
        steps=tuple(map(str, STEPS)),
        longest=LONGEST,
        tasks=len(TASKS),
        labelled=LABELLED,
        things=THINGS,
        episodes=len(episodes),
        frames=sum(lengths),
        seed=config.seed,
        noise_levels=NOISE_LEVELS,
        finished=sum(episode.finished for episode in episodes),
    )
    for name in description.arrays():
        if name != "episode":
            np.save(folder / f"{name}.npy", np.concatenate([getattr(episode, name) for episode in episodes]))
    np.save(folder / "episode.npy", np.repeat(np.arange(len(episodes), dtype=np.int32), lengths))
    text = msgspec.json.format(msgspec.json.encode(description), indent=2)
    (folder / DESCRIPTION).write_bytes(text + b"\n")
