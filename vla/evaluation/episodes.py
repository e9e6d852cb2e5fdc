"""Drives episodes: one robot through one, many robots through all of them at once."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vla.evaluation.conditions import Trial
from vla.tabletop.simulator import EPISODE_STEPS, Tabletop
from vla_client import ActionChunk, ChunkPlayer, Encoding, Observation, Policy, PolicyError
from vla_client.observation import encode
from vla_runtime.errors import RequestError

# How long the policy is asked on after a success, for what it says of it [control steps].
ENDING_STEPS = 10

# Grey level of the picture in the condition `blank`.
GREY = 127

# Held whenever a graphics context is made, used or closed: with contexts at work in several threads at once,
# Mesa's software renderer has crashed the process (once, in some 100 runs).
_GRAPHICS = threading.Lock()

# Makes one robot's policy: called with its simulator, in its thread; closed when the robot is done.
MakePolicy = Callable[[Tabletop], AbstractContextManager[Policy]]


@dataclass(frozen=True)
class Setup:
    """How a robot observes and acts."""

    # Actions of a chunk that are executed before the next observation [control steps].
    replan: int = 1
    # Width and height of the picture sent [pixels].
    image_size: int = 96
    encoding: Encoding = "png"
    # What befalls a picture before it is encoded: uint8 [size, size, 3] in and out; None: nothing.
    disturb: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    # Longest episode [control steps].
    steps: int = EPISODE_STEPS
    # How long what is done must stay done, the policy being asked on: at most ENDING_STEPS [control steps].
    dwell: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.dwell <= ENDING_STEPS:
            raise ValueError(f"dwell must be from 0 to {ENDING_STEPS} steps, got {self.dwell}")


@dataclass(frozen=True, eq=False)
class Episode:
    """What came of a trial."""

    trial: Trial
    success: bool
    # Colour of the block that the goal's task first happened to; None: to none in time.
    outcome: str | None
    # Control steps taken.
    steps: int
    # Time from the observation sent to the chunk received [ms], one a request.
    latency_ms: tuple[float, ...]
    # Robots that shared the forward pass, one a request; empty where the policy does not say.
    batch_sizes: tuple[int, ...]
    # Requests whose chunk the safety layer changed.
    interventions: int
    # Code of the refusal that ended the episode as a failure; None: no request was refused.
    error: str | None
    # The first chunk: float32 [T, A], physical units; it depends on the seed alone. None: refused.
    first: NDArray[np.float32] | None
    # Requests whose chunk was replaced by standing still.
    held: int = 0
    # Whether the policy answers how sure it is that the task is done.
    says_done: bool = False
    # Control steps after which it was first said, as players take it; a success is followed by ENDING_STEPS
    # more, which count nowhere else. None: never.
    done_at: int | None = None
    # Whether it succeeded, and the goal stayed fulfilled for the setup's `dwell`.
    stayed: bool = False
    # Blocks that the goal was not about, and that lie elsewhere at the end.
    disturbed: int = 0

    @property
    def done_early(self) -> bool:
        """Whether it was said before a success, or without one."""
        return self.done_at is not None and not (self.success and self.done_at >= self.steps)

    @property
    def done_in_time(self) -> bool:
        """Whether it was first said after a success, within ENDING_STEPS."""
        return self.success and self.done_at is not None and not self.done_early


class Recorded:
    """Passes a policy's chunks on and keeps them, with the time that each took."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.latency_ms: list[float] = []
        self.chunks: list[ActionChunk] = []

    def infer(self, observation: Observation) -> ActionChunk:
        """Answer as the policy does."""
        begin = time.perf_counter()
        chunk = self._policy.infer(observation)
        self.latency_ms.append(1000 * (time.perf_counter() - begin))
        self.chunks.append(chunk)
        return chunk


def observe(env: Tabletop, trial: Trial, setup: Setup) -> Observation:
    """Return the observation that the trial's condition allows."""
    size = setup.image_size
    if trial.condition == "blank":
        picture = np.full((size, size, 3), GREY, np.uint8)
    else:
        with _GRAPHICS:
            picture = env.render(size)
    if setup.disturb is not None:
        picture = setup.disturb(picture)
    return Observation(encode(picture, setup.encoding), trial.command, env.state(), seed=trial.seed)


def run_episode(
    env: Tabletop,
    policy: Policy,
    trial: Trial,
    setup: Setup,
    on_step: Callable[[], None] | None = None,
) -> Episode:
    """Run one trial to its end; success is judged on the trial's goal, whatever the command says.

    A refused request ends the episode as a failure. `on_step` is called after the reset and every step.

    Raises:
        PolicyUnavailable, InvalidAnswer: the evaluation can't go on.
    """
    env.reset(trial.seed, trial.goal)
    recorded = Recorded(policy)
    player = ChunkPlayer(recorded, setup.replan)
    error = done_at = None
    try:
        while not env.over and env.steps < setup.steps:
            if on_step:
                on_step()
            action = player.action(lambda: observe(env, trial, setup))
            done_at = env.steps if player.done and done_at is None else done_at
            env.step(action)
    except (PolicyError, RequestError) as refusal:
        error = refusal.code
    if on_step:
        on_step()
    episode = _summarised(env, trial, recorded, error, done_at)
    if episode.success:
        done_at, stayed = _ending(env, player, trial, setup, episode)
        episode = replace(episode, done_at=done_at, stayed=stayed)
    return replace(episode, disturbed=len(env.disturbed()))


def _summarised(
    env: Tabletop, trial: Trial, recorded: Recorded, error: str | None, done_at: int | None
) -> Episode:
    return Episode(
        trial=trial,
        success=env.success and error is None,
        outcome=env.outcome(),
        steps=env.steps,
        latency_ms=tuple(recorded.latency_ms),
        batch_sizes=tuple(
            int(chunk.timing_ms["batch_size"]) for chunk in recorded.chunks if "batch_size" in chunk.timing_ms
        ),
        interventions=sum(chunk.safety.status != "ok" for chunk in recorded.chunks),
        held=sum(chunk.safety.status == "held" for chunk in recorded.chunks),
        error=error,
        first=recorded.chunks[0].actions if recorded.chunks else None,
        says_done=any(chunk.done is not None for chunk in recorded.chunks),
        done_at=done_at,
    )


def _ending(
    env: Tabletop, player: ChunkPlayer, trial: Trial, setup: Setup, episode: Episode
) -> tuple[int | None, bool]:
    """Go on after a success, for the dwell and until the policy calls it done.

    Returns:
        after how many steps of the episode it was called done, and whether it stayed done for the dwell
    """
    begun, done_at, kept = env.steps, episode.done_at, 0
    with contextlib.suppress(PolicyError, RequestError):
        while env.steps - begun <= ENDING_STEPS:
            waits = env.steps - begun < setup.dwell
            if not waits and (done_at is not None or not episode.says_done):
                break
            action = player.action(lambda: observe(env, trial, setup))
            if player.done and done_at is None:
                done_at = env.steps
                if not waits:
                    break
            env.step(action)
            kept += waits and env.happens(trial.goal)
    return done_at, kept == setup.dwell


def run_all(
    trials: Sequence[Trial], make_policy: MakePolicy, setup: Setup, robots: int, title: str
) -> list[Episode]:
    """Run all trials on `robots` robots at once and return their episodes in the order of the trials.

    Each robot is a thread with its own simulator, graphics context and policy: a context must be made, used
    and closed in one thread.
    """
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(trials)):
        pending.put(index)
    done: dict[int, Episode] = {}

    def drive(progress: tqdm) -> None:
        with _simulator() as env, make_policy(env) as policy:
            while (index := _take(pending)) is not None:
                done[index] = run_episode(env, policy, trials[index], setup)
                progress.update()

    bar = tqdm(total=len(trials), unit="episode", desc=title, disable=None)  # none where nobody watches
    with bar as progress, ThreadPoolExecutor(robots) as pool:
        tasks = [pool.submit(drive, progress) for _ in range(min(robots, len(trials)))]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            while _take(pending) is not None:  # after a failure the other robots end their episode and stop
                pass
        for task in tasks:
            task.result()
    return [done[index] for index in range(len(trials))]


@contextlib.contextmanager
def _simulator() -> Iterator[Tabletop]:
    env = Tabletop()
    try:
        yield env
    finally:
        with _GRAPHICS:
            env.close()


def _take(pending: "queue.SimpleQueue[int]") -> int | None:
    try:
        return pending.get_nowait()
    except queue.Empty:
        return None
