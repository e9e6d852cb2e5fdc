"""A robot that does not wait: chunks that are executed some steps after their observation.

    observed       k           k + replan              delay = 2, replan = 4
    executed       a0 a1 a2 a3 a4 a5 | b2 b3 ..        the seam: b was observed at k + replan

The delay is simulated, in control steps, so that no figure depends on the machine. Three ways to go on:

plain    the new chunk's action of that moment: those that are past are skipped
blended  the same, faded in linearly over what both chunks have left
planned  real-time chunking: the new chunk was asked to begin with what is executed meanwhile
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vla.evaluation.conditions import Trial
from vla.evaluation.episodes import Setup, observe
from vla.evaluation.report import Rate
from vla.tabletop.simulator import Tabletop
from vla_client import ActionChunk, Observation, Policy
from vla_client.delays import Delays

Way = Literal["plain", "blended", "planned"]
# Dimensions of an action that move the hand [m], and the unit that distances are given in.
MOVING, MILLIMETRES = slice(0, 3), 1000.0


@dataclass(frozen=True)
class Seam:
    """Where one chunk follows another."""

    # From the old chunk's last executed action to the first of the new one [mm of hand movement a step].
    jump: float
    # From the old chunk's last executed action to the one that the new chunk has for that moment [mm]; None
    # without a delay, where both chunks share no moment that is past.
    disagreement: float | None


@dataclass(frozen=True)
class Row:
    """One way at one delay."""

    way: Way
    delay: int
    success: Rate
    seams: tuple[Seam, ...]
    # From each executed action to the next of the same chunk, mean [mm].
    within: float

    @property
    def jumps(self) -> tuple[float, float]:
        """Mean and 95th percentile of the jumps [mm]."""
        values = [seam.jump for seam in self.seams] or [np.nan]
        return float(np.mean(values)), float(np.percentile(values, 95))

    @property
    def disagreement(self) -> float | None:
        """Mean disagreement [mm]; None of none."""
        values = [seam.disagreement for seam in self.seams if seam.disagreement is not None]
        return float(np.mean(values)) if values else None


class DelayedPlayer:
    """Plays chunks that are executed `delay` steps after their observation, and measures their seams."""

    def __init__(self, policy: Policy, replan: int, delay: int, way: Way) -> None:
        self._policy, self._replan, self._delay, self._way = policy, replan, delay, way
        self._delays = Delays(delay)
        self._chunk: ActionChunk | None = None
        self._coming: ActionChunk | None = None
        # What is executed, float32 [T, A]: the chunk, or what it is blended to; the place of the next action.
        self._plan, self._next = np.empty((0, 0), np.float32), 0
        self._since = 0  # steps since the newest observation
        self._last: NDArray[np.float32] | None = None
        self.seams: list[Seam] = []
        self.within: list[float] = []

    def action(self, observe: Callable[[], Observation]) -> NDArray[np.float32]:
        """Return the action of this step: float32 [A], physical units; the first chunk is waited for.

        Raises:
            ValueError: chunks are shorter than `replan` + `delay`.
        """
        if self._chunk is None:
            self._chunk = self._policy.infer(observe())
            self._plan = self._chunk.actions
            if len(self._plan) < self._replan + self._delay:
                raise ValueError(f"chunks of {len(self._plan)} actions are too short")
        seams = len(self.seams)
        self._take_over_if_due()
        if self._since == self._replan:
            self._coming, self._since = self._ask(observe()), 0
            self._take_over_if_due()
        action = self._plan[self._next]
        if self._last is not None and len(self.seams) == seams:
            self.within.append(distance(action, self._last))
        self._last = action
        self._next += 1
        self._since += 1
        return action

    def _ask(self, observation: Observation) -> ActionChunk:
        if self._way == "planned" and self._delay:
            observation = self._delays.told(observation, self._chunk, self._next)
        return self._policy.infer(observation)

    def _take_over_if_due(self) -> None:
        if self._coming is None or self._last is None or self._since != self._delay:
            return
        left, given, past = self._plan[self._next :], self._coming.actions, self._delay
        plan = given.copy()
        if self._way == "blended":
            share = np.arange(1, len(left) + 1, dtype=np.float32)[:, None] / (len(left) + 1)
            faded = plan[past : past + len(left)]
            faded[:] = (1 - share) * left[: len(faded)] + share * faded
        disagreement = distance(self._last, given[past - 1]) if past else None
        self.seams.append(Seam(distance(self._last, plan[past]), disagreement))
        self._chunk, self._coming, self._plan, self._next = self._coming, None, plan, past


def distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return how far two actions lead apart [mm]."""
    return float(np.linalg.norm((one - other)[MOVING])) * MILLIMETRES


def measure(
    env: Tabletop, policy: Policy, todo: Sequence[Trial], setup: Setup, *, way: Way, delay: int
) -> Row:
    """Run the trials one way at one delay, an observation every `setup.replan` steps."""
    successes = 0
    seams: list[Seam] = []
    within: list[float] = []
    for trial in tqdm(todo, unit="episode", desc=f"{way}, delay {delay}", disable=None):
        env.reset(trial.seed, trial.goal)
        player = DelayedPlayer(policy, setup.replan, delay, way)
        while not env.over and env.steps < setup.steps:
            env.step(player.action(lambda trial=trial: observe(env, trial, setup)))
        successes += env.success
        seams += player.seams
        within += player.within
    return Row(way, delay, Rate(successes, len(todo)), tuple(seams), float(np.mean(within)))
