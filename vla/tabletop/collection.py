"""Collect demonstrations: the expert at work, its answers for every goal written down at every frame."""

import contextlib
import functools
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import msgspec
import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from vla.tabletop.commands import COLOURS, GOALS, Goal
from vla.tabletop.demonstrations import DESCRIPTION, FORMAT_VERSION, Demonstrations, Description
from vla.tabletop.expert import OPENED, ended, expert_action, expert_chunk
from vla.tabletop.labels import boxes, points
from vla.tabletop.looks import PLAIN, draw_look
from vla.tabletop.simulator import ACTION, ACTION_HIGH, CAMERA, CONTROL_HZ, STATE, Tabletop

E = TypeVar("E")

# Standard deviation of the noise on the executed action, as a share of the action bound: a third of the
# episodes each. The labels stay the expert's own.
NOISE_LEVELS = (0.0, 0.25, 0.6)
# Longest episode [frames], and the share of follow-up goals that concern the same block.
EPISODE_FRAMES = 30
SAME_BLOCK = 0.5
# Chance that a step repeats the last gripper command: so that fingers are seen open where they should close,
# and a policy can't learn to command what they already do.
STICKY = 0.6
# Fingers close early within so far of a block's centre across the table and above it [m], and stay so at most
# so long [control steps].
EARLY_RADIUS, EARLY_CEILING, EARLY_STEPS = 0.03, 0.05, 4
# Episode i of data set seed s is reset with FIRST_SCENE + s * SEED_STRIDE + i; evaluations stay below.
FIRST_SCENE = 1 << 40
SEED_STRIDE = 1_000_000


@dataclass(frozen=True)
class Collection:
    """Collect demonstrations of the scripted expert into a folder."""

    # The folder to write.
    out: Path = Path("data/tabletop")
    # Number of episodes, spread evenly over goals and noise levels.
    episodes: int = 800
    # Seed of the whole data set; the same seed gives the same data with any number of workers.
    seed: int = 0
    # Length of each label [control steps].
    horizon: int = 8
    # Width and height of the images [pixels].
    image_size: int = 96
    # Share of the frames that are drawn in a random look: light, colours, camera, distractors.
    varied: float = 0.7
    # Chance that a step above a block closes open fingers too early. Policies do, for they answer with the
    # mean of near frames; without such frames they do not know what to do with a block held by its top.
    early: float = 0.3
    # Worker processes.
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    # Replace the folder if it exists.
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False

    def __post_init__(self) -> None:
        limits = {"episodes": SEED_STRIDE, "horizon": 1000, "image_size": 640, "workers": 1024}
        for name, highest in limits.items():
            value = getattr(self, name)
            if not 1 <= value <= highest:
                raise ValueError(f"{name} must be between 1 and {highest}, got {value}")
        for name in ("varied", "early"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")


def leave_to_demonstrations(first_seed: int, count: int) -> None:
    """Refuse `count` scenes from a seed on to whoever measures, where demonstrations have them.

    Raises:
        ValueError: a seed is one that data collection uses, or is negative.
    """
    if not 0 <= first_seed <= FIRST_SCENE - count:
        raise ValueError(f"first_seed must leave the seeds from {FIRST_SCENE} on to demonstrations")


class Episode(NamedTuple):
    """One demonstration of ``n`` frames."""

    images: NDArray[np.uint8]  # uint8 [n, size, size, 3]
    state: NDArray[np.float32]  # float32 [n, 4], physical units
    actions: NDArray[np.float32]  # float32 [n, G, T, 4], physical units
    blocks: NDArray[np.float32]  # float32 [n, 4, 3] [m]
    boxes: NDArray[np.float32]  # float32 [n, 4, 4], shares of the picture's edge
    hand: NDArray[np.float32]  # float32 [n, 2], shares of the picture's edge
    goal: NDArray[np.int32]  # int32 [n], index in GOALS of the goal pursued
    success: bool  # of the first goal


def collect(config: Collection) -> Demonstrations:
    """Collect and write a data set, whole or not at all, and load it.

    Raises ``FileExistsError`` if the folder exists and ``overwrite`` is not set.
    """
    if config.out.exists() and not config.overwrite:
        raise FileExistsError(f"{config.out} exists; choose another --out or pass --overwrite")
    episodes = list(tqdm(_episodes(config), total=config.episodes, unit="episode", desc=str(config.out)))
    with whole(config.out) as folder:
        write(folder, episodes, config)
    return Demonstrations.load(config.out)


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `out` when all is written; else nothing is left."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def demonstrate(
    index: int, seed: int, horizon: int, image_size: int, *, varied: float = 0.0, early: float = 0.0
) -> Episode:
    """Collect episode `index` of the data set `seed`; depends on nothing but its arguments.

    A goal that is reached is followed by another one, for half of the time with the same block: so the data
    set shows hands at, on and around blocks, where grasps are decided, and what is to be seen at the end of a
    task. Every frame has a look of its own: a policy without memory learns most from looks that differ most.
    """
    env = _simulator()
    level = NOISE_LEVELS[index // len(GOALS) % len(NOISE_LEVELS)]
    random, looks = np.random.default_rng([seed, index]), np.random.default_rng([seed, index, 1])
    goal = GOALS[index % len(GOALS)]
    env.reset(FIRST_SCENE + seed * SEED_STRIDE + index, goal)
    images, state, actions, blocks, frames, hands, goals = [], [], [], [], [], [], []
    fingers = Fingers(random, early)
    while len(images) < EPISODE_FRAMES:
        blocks.append(env.blocks())
        env.look = draw_look(looks, blocks[-1]) if looks.random() < varied else PLAIN
        images.append(env.render(image_size))
        frames.append(boxes(blocks[-1], env.look))
        state.append(env.state())
        hands.append(points(state[-1][:3], env.look))
        actions.append([expert_chunk(env, each, horizon) for each in GOALS])
        goals.append(GOALS.index(goal))
        action = expert_action(env, goal)
        gripper = fingers.command(action[3], state[-1], blocks[-1])
        env.step(np.append(action[:3], gripper) + random.normal(0, level, 4) * ACTION_HIGH)
        if ended(env, goal):
            goal = _following(random, goal)
    return Episode(
        np.stack(images),
        np.stack(state),
        np.array(actions, np.float32),
        np.stack(blocks),
        np.stack(frames),
        np.stack(hands),
        np.array(goals, np.int32),
        env.success,
    )


def _following(random: np.random.Generator, goal: Goal) -> Goal:
    """Draw the goal that follows one that is reached."""
    same = [each for each in GOALS if each.colour == goal.colour and each.task != goal.task]
    choices = same if random.random() < SAME_BLOCK else GOALS
    return choices[random.integers(len(choices))]


class Fingers:
    """What the fingers are commanded while the expert demonstrates: what it wants, late or too early."""

    def __init__(self, random: np.random.Generator, early: float) -> None:
        self._random, self._early = random, early
        self._last = -1.0
        # How far they close too early, and for how many steps still.
        self._closed, self._steps = 0.0, 0

    def command(self, wanted: float, state: NDArray[np.float32], blocks: NDArray[np.float32]) -> float:
        """Return the next command; state as in `STATE`, the blocks' centres float32 [N, 3] [m]."""
        if self._random.random() >= STICKY:
            self._last = wanted
        may = self._early > 0 and not self._steps and _above_a_block(state, blocks)
        if may and self._random.random() < self._early:
            self._steps = int(self._random.integers(1, EARLY_STEPS + 1))
            self._closed = self._random.uniform(0, 1)
        if self._steps:
            self._steps, self._last = self._steps - 1, self._closed
        return self._last


def _above_a_block(state: NDArray[np.float32], blocks: NDArray[np.float32]) -> bool:
    """Whether open fingers are above one of the blocks, or around it."""
    away = state[:3] - blocks
    near = np.hypot(away[:, 0], away[:, 1]) < EARLY_RADIUS
    return bool(state[3] > OPENED and (near & (away[:, 2] < EARLY_CEILING)).any())


@functools.cache
def _simulator() -> Tabletop:
    """One simulator a process: its renderer is slow to make."""
    return Tabletop()


def _episodes(config: Collection) -> Iterator[Episode]:
    """Every episode in order, collected in worker processes."""
    task = functools.partial(
        demonstrate,
        seed=config.seed,
        horizon=config.horizon,
        image_size=config.image_size,
        varied=config.varied,
        early=config.early,
    )
    return in_processes(task, config.episodes, config.workers)


def in_processes(task: Callable[[int], E], count: int, workers: int) -> Iterator[E]:
    """Return what a task makes of 0 to `count` - 1, in order."""
    # Rendering contexts do not survive a fork.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, count), mp_context=spawn) as pool:
        yield from pool.map(task, range(count))


def write(
    folder: Path,
    episodes: Sequence[Episode],
    config: Collection,
    noise_levels: tuple[float, ...] = NOISE_LEVELS,
) -> None:
    """Write the arrays, one episode at a time, and the description last."""
    lengths = [len(episode.state) for episode in episodes]
    description = _describe(episodes, config, noise_levels)
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.dtype(dtype), shape)
        for name, (dtype, shape) in description.arrays().items()
    }
    begins = np.cumsum([0, *lengths])
    for index, (begin, episode) in enumerate(zip(begins[:-1], episodes, strict=True)):
        frames = slice(begin, begin + lengths[index])
        for name in ("images", "state", "actions", "blocks", "boxes", "hand", "goal"):
            arrays[name][frames] = getattr(episode, name)
        arrays["episode"][frames] = index
    for array in arrays.values():
        array.flush()
    text = msgspec.json.format(msgspec.json.encode(description), indent=2)
    (folder / DESCRIPTION).write_bytes(text + b"\n")


def _describe(
    episodes: Sequence[Episode], config: Collection, noise_levels: tuple[float, ...]
) -> Description:
    return Description(
        format_version=FORMAT_VERSION,
        camera=CAMERA,
        image_size=config.image_size,
        control_hz=CONTROL_HZ,
        horizon=config.horizon,
        state=STATE,
        action=ACTION,
        goals=tuple((goal.task, goal.colour) for goal in GOALS),
        blocks=COLOURS,
        episodes=len(episodes),
        frames=sum(len(episode.state) for episode in episodes),
        seed=config.seed,
        noise_levels=noise_levels,
        varied=config.varied,
        early=config.early,
        success_rate=sum(episode.success for episode in episodes) / len(episodes),
    )
