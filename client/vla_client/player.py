"""Turns chunks into one action a control step: receding horizon.

A chunk holds T actions; the first `replan` of them are executed, then a new observation is taken:

    chunk at step 0   a0 a1 a2 a3 .. aT
    executed          a0 a1 a2 a3            replan = 4
    chunk at step 4               a0 a1 a2 a3 .. aT

A task ends by itself: `while not player.done: robot.move(player.action(observe))`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_client.chunk import ActionChunk
from vla_client.ending import Ending
from vla_client.history import History
from vla_client.observation import Observation


class Policy(Protocol):
    """Anything that answers an observation with a chunk: remote, in-process or scripted."""

    def infer(self, observation: Observation) -> ActionChunk:
        """Answer one observation."""
        ...


class ChunkPlayer:
    """Plays a policy's chunks, one action a step. Not thread-safe: one player belongs to one robot."""

    def __init__(self, policy: Policy, replan: int | None = None, history: int = 1) -> None:
        """Play `replan` actions of every chunk [steps]; None plays each chunk to its end.

        `history` is the policy's own [steps]: above 1, `observe` is called every step and the last are sent.

        Raises:
            ValueError: `replan` is less than 1.
        """
        if replan is not None and replan < 1:
            raise ValueError(f"replan must be at least 1 step, got {replan}")
        self._policy = policy
        self._replan = replan
        self._history = History(history)
        self._ending = Ending()
        self._chunk: ActionChunk | None = None
        self._played = 0

    @property
    def chunk(self) -> ActionChunk | None:
        """The chunk being played; None before the first."""
        return self._chunk

    @property
    def done(self) -> bool:
        """Whether the last two answers call the task done; never for a policy that answers no `done`."""
        return self._ending.done

    def action(self, observe: Callable[[], Observation]) -> NDArray[np.float32]:
        """Return the action of this step: float32 [A], physical units.

        `observe` is called only when a new chunk is due, so no picture is taken for nothing, unless there is
        a history. When the policy fails, its exception passes through and the next call asks again with a
        fresh observation.
        """
        observe = self._history.watch(observe)
        if self._chunk is None or self._played >= self._length(self._chunk):
            self._chunk = None
            observation = observe()
            self._chunk = self._policy.infer(observation)
            self._ending.add(observation.command, self._chunk)
            self._played = 0
        action = self._chunk.actions[self._played]
        self._played += 1
        return action

    def reset(self) -> None:
        """Forget chunk and history: the next step observes afresh. For a new episode or a new command."""
        self._chunk = None
        self._history.reset()
        self._ending.reset()
        self._played = 0

    def _length(self, chunk: ActionChunk) -> int:
        """Steps of a chunk that are played; never more than it has."""
        return len(chunk.actions) if self._replan is None else min(self._replan, len(chunk.actions))
