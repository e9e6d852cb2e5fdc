"""Plays chunks without waiting for the next one: it is asked for while the current one is executed.

The observation is taken `lead` steps before the chunk's last played action; when the answer takes over, the
steps executed meanwhile are skipped, so that every action is executed at the moment that it was meant for:

    executed          a0 a1 a2 a3 | b2 b3 b4 b5 | c2 ..
    observed, asked         ^           ^              lead = 2, replan = 4: b0 and b1 are already past

A policy that plans for delays is told what these steps are, so that b2 follows a3; see `delays`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from vla_client.chunk import ActionChunk
from vla_client.delays import Delays
from vla_client.ending import Ending
from vla_client.errors import PolicyFailure
from vla_client.history import History
from vla_client.observation import Observation
from vla_client.player import Policy


class AheadPlayer:
    """Plays a policy's chunks, one action a step, and asks in a thread of its own. One player, one robot."""

    def __init__(self, policy: Policy, replan: int, lead: int = 1, history: int = 1) -> None:
        """Take over a new chunk after `replan` steps, observed `lead` steps earlier [steps].

        `history` is the policy's own [steps]: above 1, `observe` is called every step and the last are sent.
        Chunks must have at least `replan` + `lead` actions; those beyond are played while an answer is late.

        Raises:
            ValueError: `lead` is less than 1, or `replan` is not larger than `lead`.
        """
        if lead < 1:
            raise ValueError(f"lead must be at least 1 step, got {lead}")
        if replan <= lead:
            raise ValueError(f"replan must be larger than lead ({lead}), got {replan}")
        self._policy = policy
        self._replan, self._lead = replan, lead
        self._history = History(history)
        self._delays = Delays(lead)
        self._ending = Ending()
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._chunk: ActionChunk | None = None
        # Place of the next action in the chunk; steps played since the chunk took over.
        self._next = self._played = 0
        self._asked: Future[ActionChunk] | None = None
        # The command of `_asked`.
        self._command = ""
        # Steps executed since the observation of `_asked`.
        self._since = 0
        # Steps that had to wait because the chunk was at its end before the next one came.
        self.waits = 0

    @property
    def done(self) -> bool:
        """Whether the last two chunks call the task done; never for a policy that answers no `done`."""
        return self._ending.done

    def action(self, observe: Callable[[], Observation]) -> NDArray[np.float32]:
        """Return the action of this step: float32 [A], physical units.

        Waits only for the first chunk, and where an answer is later than the chunk is long. When the policy
        fails, the chunk is played to its end while every step asks again with a fresh observation; at its end
        the policy's exception passes through.
        """
        observe = self._history.watch(observe)
        if self._chunk is None:
            observation = observe()
            self._command = observation.command
            self._begin(self._thread.submit(self._policy.infer, observation).result(), 0)
        self._take_over(observe)
        assert self._chunk is not None
        if self._asked is None and self._played >= self._replan - self._lead:
            self._ask(observe)
        action = self._chunk.actions[self._next]
        self._next += 1
        self._played += 1
        self._since += 1
        return action

    def reset(self) -> None:
        """Forget chunk and history, and the answer on its way: the next step observes afresh."""
        self._history.reset()
        self._ending.reset()
        self._chunk = self._asked = None

    def close(self) -> None:
        """Wait for the request on its way and end the thread."""
        self._thread.shutdown()

    def __enter__(self) -> AheadPlayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, observe: Callable[[], Observation]) -> None:
        observation = self._delays.told(observe(), self._chunk, self._next)
        self._asked, self._command = self._thread.submit(self._policy.infer, observation), observation.command
        self._since = 0

    def _begin(self, chunk: ActionChunk, past: int) -> None:
        """Play a chunk from its action `past` on."""
        if len(chunk.actions) < self._replan + self._lead:
            raise ValueError(
                f"a chunk of {len(chunk.actions)} actions is too short for replan {self._replan} and "
                f"lead {self._lead}"
            )
        self._chunk, self._next, self._played, self._asked = chunk, past, 0, None
        self._ending.add(self._command, chunk)

    def _take_over(self, observe: Callable[[], Observation]) -> None:
        """Change to the next chunk where its turn has come."""
        assert self._chunk is not None
        at_end = self._next >= len(self._chunk.actions)
        if at_end and self._asked is None:
            self._ask(observe)
        asked = self._asked
        due = asked is not None and self._played >= self._replan and asked.done()
        if asked is None or not (at_end or due):
            return
        self.waits += at_end and not asked.done()
        self._asked = None
        try:
            chunk = asked.result()
        except PolicyFailure:
            if at_end:
                self._chunk = None
                raise
            return
        self._delays.measured(self._since)
        self._begin(chunk, min(self._since, len(chunk.actions) - 1))
