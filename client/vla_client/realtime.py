"""Control at a fixed rate with the latest observation: nothing queues, nothing old is executed.

    camera, sensors, operator --set--> newest observation --one at a time--> policy --> newest chunk
                                                                                           |
                              robot <-- action of this moment <-- every 1 / control_hz ----+

Each arrow holds one item, and a newer one takes its place; the policy is asked at most once a tick. An answer
is dropped when it is too old, or when its command is no longer the newest. At every tick the action is the
one that the chunk meant for this moment, counted from when its observation was taken. Where there is none,
the robot holds, and `failure` says why. A policy that plans for delays is told what is executed until its
answer is there; see `delays`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
from numpy.typing import NDArray

from vla_client.chunk import ActionChunk
from vla_client.delays import Delays
from vla_client.ending import Ending
from vla_client.errors import PolicyError, PolicyFailure
from vla_client.history import History
from vla_client.observation import Observation
from vla_client.player import Policy

_log = logging.getLogger(__name__)

# What a robot executes: float32 [A], physical units; None: hold still.
Execute = Callable[[Optional[NDArray[np.float32]]], None]


@dataclass(frozen=True)
class Counts:
    """What became of observations and answers so far."""

    # Observations given in, and those replaced by a newer one before the policy saw them.
    observed: int = 0
    replaced: int = 0
    # Chunks taken over.
    answered: int = 0
    # Answers that came too late, and answers to a command that is no longer the newest.
    late: int = 0
    outdated: int = 0
    # Requests that got no chunk.
    failed: int = 0


@dataclass(frozen=True)
class Run:
    """How regularly a run of the control loop ticked."""

    ticks: int
    # Ticks without an action: no chunk yet, or the last one was used up.
    held: int
    # Ticks left out because the robot took longer than a period.
    skipped: int
    # How late each tick began [ms]: mean, 95th percentile, largest.
    jitter_mean_ms: float
    jitter_p95_ms: float
    jitter_max_ms: float


@dataclass(frozen=True)
class _Seen:
    observation: Observation
    at_s: float  # of time.monotonic


@dataclass(frozen=True)
class _Plan:
    chunk: ActionChunk
    observed_s: float  # of time.monotonic


class RealTime:
    """Runs one robot: `with RealTime(policy) as robot: robot.observe(...); robot.run(execute, ticks)`.

    `observe` may be called from any thread, at any rate; `run` belongs to one thread. The policy is asked in
    a thread of its own, one request at a time.
    """

    def __init__(
        self, policy: Policy, control_hz: float = 10.0, max_age_s: float = 0.5, history: int = 1
    ) -> None:
        """Prepare the loop; nothing runs until it is entered.

        Args:
            policy: answers observations, for instance a `RemotePolicy`
            control_hz: rate of the loop; chunks must be meant for the same [Hz]
            max_age_s: an answer whose observation is older when it comes is dropped [s]
            history: the policy's own [steps]: above 1, the last given observations are sent: give one a tick

        Raises:
            ValueError: a number is not positive.
        """
        if not (control_hz > 0 and max_age_s > 0):
            raise ValueError(f"control_hz and max_age_s must be positive, got {control_hz} and {max_age_s}")
        self._policy, self._period_s, self._max_age_s = policy, 1 / control_hz, max_age_s
        self._changed = threading.Condition()
        # All below are guarded by `_changed`.
        self._newest: _Seen | None = None
        self._history = History(history)
        self._delays = Delays()
        self._ending = Ending()
        self._command = ""
        self._plan: _Plan | None = None
        self._counts = Counts()
        # A mistake in the program: ends the loop. The last failed request, until one is answered.
        self._error: Exception | None = None
        self._failure: PolicyFailure | None = None
        self._asked_s = -math.inf  # of time.monotonic
        self._open = True
        self._thread = threading.Thread(target=self._ask, name="realtime", daemon=True)

    @property
    def counts(self) -> Counts:
        """What became of observations and answers so far."""
        with self._changed:
            return self._counts

    @property
    def failure(self) -> PolicyFailure | None:
        """Why the last request got no chunk; None once one is answered again."""
        with self._changed:
            return self._failure

    @property
    def done(self) -> bool:
        """Whether the last two chunks call the task done; never for a policy that answers no `done`."""
        with self._changed:
            return self._ending.done

    def observe(self, observation: Observation) -> None:
        """Give the newest observation; one that still waits is replaced.

        A new command also drops the chunk in use: the robot holds until the new one is answered.
        """
        with self._changed:
            self._count(observed=1, replaced=int(self._newest is not None))
            if observation.command != self._command:
                self._command, self._plan = observation.command, None
                self._ending.reset()
            self._newest = _Seen(self._history.add(observation), time.monotonic())
            self._changed.notify()

    def action(self) -> NDArray[np.float32] | None:
        """Return the action meant for this moment, float32 [A]; None where there is none: hold.

        Raises:
            ValueError: a chunk is meant for another rate.
            PolicyError: the server refuses requests like these for good: a field is missing, a key is wrong.
                Raised until an observation is answered again; failures that pass are in `failure`.
        """
        with self._changed:
            if self._error:
                raise self._error
            if self._failure and self._failure.final:
                raise self._failure
            plan = self._plan
        if plan is None:
            return None
        step = int((time.monotonic() - plan.observed_s) / self._period_s)
        return plan.chunk.actions[step] if step < len(plan.chunk.actions) else None

    def run(self, execute: Execute, ticks: int, *, until_done: bool = False) -> Run:
        """Execute `ticks` control steps at the fixed rate, and measure how regular they were.

        `execute` gets the action, or None where the robot must hold. A step that takes longer than the period
        leaves the following ticks out; they are not made up for. With `until_done` the run ends before that
        where two chunks that come during it call the task done, and the robot holds.
        """
        late_ms, held, skipped = [], 0, 0
        with self._changed:
            self._ending.reset()
        due_s = time.monotonic()
        for _ in range(ticks):
            if (wait_s := due_s - time.monotonic()) > 0:
                time.sleep(wait_s)
            late_ms.append((time.monotonic() - due_s) * 1000)
            ended = until_done and self.done
            action = None if ended else self.action()
            held += action is None
            execute(action)
            if ended:
                break
            due_s += self._period_s
            if (behind := int((time.monotonic() - due_s) / self._period_s)) > 0:
                skipped += behind
                due_s += behind * self._period_s
        late = np.asarray(late_ms or [0.0])
        return Run(
            len(late_ms), held, skipped, float(late.mean()), float(np.percentile(late, 95)), float(late.max())
        )

    def close(self) -> None:
        """Wait for the request on its way and end the thread."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> RealTime:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self) -> None:
        """Ask for the newest observation, again and again."""
        while (seen := self._take()) is not None:
            try:
                chunk = self._policy.infer(self._told(seen))
            except PolicyFailure as failure:
                self._fail(failure)
                continue
            except Exception as error:  # a bug: `action` raises it in the robot's thread
                with self._changed:
                    self._error = error
                return
            self._take_over(seen, chunk)

    def _take(self) -> _Seen | None:
        """Wait for the next tick and an observation, and take it; None at the end."""
        with self._changed:
            next_s = self._asked_s + self._period_s
            while self._open and (wait_s := next_s - time.monotonic()) > 0:
                self._changed.wait(wait_s)
            self._changed.wait_for(lambda: self._newest is not None or not self._open)
            self._asked_s = time.monotonic()
            seen, self._newest = self._newest, None
            return seen if self._open else None

    def _told(self, seen: _Seen) -> Observation:
        """Return what to ask with."""
        with self._changed:
            plan = self._plan
            place = int((seen.at_s - plan.observed_s) / self._period_s) if plan else 0
            return self._delays.told(seen.observation, plan.chunk if plan else None, place)

    def _take_over(self, seen: _Seen, chunk: ActionChunk) -> None:
        with self._changed:
            # The tick at which it came may have executed the old chunk's action.
            self._delays.measured(int((time.monotonic() - seen.at_s) / self._period_s) + 1)
            if seen.observation.command != self._command:
                self._count(outdated=1)
            elif time.monotonic() - seen.at_s > self._max_age_s:
                self._count(late=1)
            elif abs(chunk.control_hz * self._period_s - 1) > 1e-6:
                meant, runs = f"{chunk.control_hz:g} Hz", f"{1 / self._period_s:g} Hz"
                self._error = ValueError(f"the chunk is meant for {meant}, the loop runs at {runs}")
            else:
                self._plan = _Plan(chunk, seen.at_s)
                self._ending.add(seen.observation.command, chunk)
                self._count(answered=1)
            if self._failure:
                _log.info("the policy answers again")
                self._failure = None

    def _fail(self, failure: PolicyFailure) -> None:
        """Keep why, and say it once: not again while the same goes on."""
        with self._changed:
            self._count(failed=1)
            if self._failure is None or _kind(failure) != _kind(self._failure):
                _log.warning("no chunk: %s", failure)
            self._failure = failure

    def _count(self, **more: int) -> None:
        counts = self._counts
        self._counts = replace(
            counts, **{name: getattr(counts, name) + value for name, value in more.items()}
        )


def _kind(failure: PolicyFailure) -> tuple[object, ...]:
    """What two failures share that are told once: not the request's id or its numbers."""
    if isinstance(failure, PolicyError):
        return (failure.status, failure.code, failure.field)
    return (type(failure),)
