"""What a batch is worth counting, for whatever monitoring the server has.

A few readings a batch, since TorchServe parses each one from a line of the worker's output. Times are in
seconds because TorchServe's histograms have fixed buckets from 5 ms to 10 s.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from vla_runtime.errors import DeadlineExpired, RequestError, UnsafeAction
from vla_runtime.policy import STAGES, Answer, Policy

# How often a worker's memory is read [s].
MEMORY_PERIOD_S = 1.0


@dataclass(frozen=True)
class Metric:
    """One metric, as `metrics.yaml` declares it to TorchServe."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    # Names of its labels.
    labels: tuple[str, ...] = ()


STAGE = Metric("vla_stage_seconds", "histogram", "s", ("stage",))
BATCH = Metric("vla_batch_requests", "histogram", "count")
COMMANDS = Metric("vla_command_cache_total", "counter", "count", ("result",))
DEADLINES = Metric("vla_deadline_misses_total", "counter", "count")
INTERVENTIONS = Metric("vla_safety_interventions_total", "counter", "count", ("action",))
SATURATION = Metric("vla_saturated_share", "histogram", "share")
ERRORS = Metric("vla_request_errors_total", "counter", "count", ("code",))
MEMORY = Metric("vla_memory_bytes", "gauge", "B", ("kind", "worker"))
CATALOGUE = (STAGE, BATCH, COMMANDS, DEADLINES, INTERVENTIONS, SATURATION, ERRORS, MEMORY)


@dataclass(frozen=True)
class Reading:
    """A value to add to a counter or histogram, or to set a gauge to."""

    metric: Metric
    value: float
    # One value a label of the metric.
    labels: tuple[str, ...] = ()


@dataclass
class Meter:
    """Reads one worker's policy: `meter.readings(answers, queue_ms)` after every batch."""

    policy: Policy
    # The label of this worker's memory: its place among the workers, which a restarted one takes over.
    worker: str = "0"
    # Command encodings found in the cache and made, so far.
    _commands: tuple[int, int] = field(init=False)
    _memory_read_s: float = -float("inf")

    def __post_init__(self) -> None:
        self._commands = self.policy.command_uses

    def readings(
        self, answers: Sequence[Answer | RequestError], queue_ms: Sequence[float]
    ) -> Iterator[Reading]:
        """Yield what one batch adds.

        Args:
            answers: one a request, as `Policy.infer` returns them
            queue_ms: how long each request waited [ms], 0 where that is not known
        """
        answered = [answer for answer in answers if isinstance(answer, Answer)]
        if answered:
            yield from (Reading(STAGE, answered[0].timing_ms[stage] / 1000, (stage,)) for stage in STAGES)
            yield Reading(BATCH, answered[0].batch_size)
        if max(queue_ms, default=0) > 0:  # the batch's longest wait
            yield Reading(STAGE, max(queue_ms) / 1000, ("queue",))
        yield from self._command_uses()
        for status, count in Counter(answer.chunk.safety.status for answer in answered).items():
            if status != "ok":
                yield Reading(INTERVENTIONS, count, (status,))
        shares = [share for a in answered if (share := a.chunk.safety.saturated) is not None]
        if shares:
            yield Reading(SATURATION, sum(shares) / len(shares))
        yield from _failures([answer for answer in answers if isinstance(answer, RequestError)])
        yield from self._memory()

    def _command_uses(self) -> Iterator[Reading]:
        before, self._commands = self._commands, self.policy.command_uses
        for result, old, new in zip(("hit", "miss"), before, self._commands, strict=True):
            if new > old:
                yield Reading(COMMANDS, new - old, (result,))

    def _memory(self) -> Iterator[Reading]:
        if time.monotonic() - self._memory_read_s < MEMORY_PERIOD_S:
            return
        self._memory_read_s = time.monotonic()
        yield Reading(MEMORY, resident_bytes(), ("resident", self.worker))
        if self.policy.device.type == "cuda":
            # All that is in use on the device: what a bound on the device's memory has to hold.
            free, total = torch.cuda.mem_get_info(self.policy.device)
            yield Reading(MEMORY, total - free, ("accelerator", self.worker))


def resident_bytes() -> int:
    """Return this process's resident memory [bytes]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _failures(errors: Sequence[RequestError]) -> Iterator[Reading]:
    for code, count in Counter(error.code for error in errors).items():
        yield Reading(ERRORS, count, (code,))
        if code == DeadlineExpired.code:
            yield Reading(DEADLINES, count)
        elif code == UnsafeAction.code:
            yield Reading(INTERVENTIONS, count, ("rejected",))
