"""What a request says of the time until its answer is executed, from how long the last answers took.

    chunk in use      a0 a1 a2 a3 a4 a5 a6 a7
    observed, asked         ^                   previous = a2 .. a7, delay = 2
    answer                  a2 a3 b2 b3 ..      begins with what is executed meanwhile, and goes on from it

Real-time chunking, for policies that plan for it: their answers say so by a `max_delay` above 0.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from vla_client.chunk import ActionChunk
from vla_client.observation import Observation

# Answers whose delay is remembered: the longest of them is expected.
_KEPT = 8


class Delays:
    """Measures one robot's delays, and tells them to its policy."""

    def __init__(self, least: int = 1) -> None:
        """Expect `least` steps until an answer is measured, and at any time [control steps]."""
        self._least = least
        self._steps: deque[int] = deque(maxlen=_KEPT)

    def measured(self, steps: int) -> None:
        """Take note of how many steps passed between an observation and the first action of its answer."""
        self._steps.append(steps)

    def told(self, observation: Observation, chunk: ActionChunk | None, place: int) -> Observation:
        """Return the observation with what is executed until its answer is there.

        It stays as it is where the policy does not plan for delays, where nothing is left of the chunk, and
        where it says `previous` or `delay` already.

        Args:
            observation: of this moment
            chunk: what the robot executes; None: nothing
            place: of this moment's action in the chunk
        """
        said = observation.previous is not None or observation.delay is not None
        if chunk is None or not chunk.max_delay or said:
            return observation
        rest = chunk.actions[place:]
        delay = min(max(self._least, *self._steps, 0), chunk.max_delay, len(rest))
        return replace(observation, previous=rest, delay=delay) if delay else observation
