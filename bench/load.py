"""Runs phases of load in the generator's own process, and reads what the answers say."""

import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import msgspec

from bench.generator import DRAIN_S, Plan, Sample, Samples
from loadtest import answers
from loadtest.body import MSGPACK
from loadtest.judge import percentile
from vla_client import ActionChunk

STAGES = ("queue", "preprocess", "inference", "postprocess")


@dataclass(frozen=True)
class Latency:
    """Latency as the client sees it [ms]."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float

    @classmethod
    def of(cls, values_s: list[float]) -> "Latency":
        """Summarise latencies in seconds; NaN where there are none."""
        if not values_s:
            return cls(*[float("nan")] * 4)
        p50, p95, p99 = (1000 * percentile(values_s, percent) for percent in (50, 95, 99))
        return cls(p50, p95, p99, 1000 * fmean(values_s))


@dataclass(frozen=True)
class Answers:
    """What one phase of load measured."""

    requests: int
    # Everything that is not a 200, and requests never answered.
    failed: int
    # Answers of status 200 a second, until the last request in flight was answered.
    rate_hz: float
    latency: Latency
    elapsed_s: float
    # Median of what the answers say of their time [ms], by stage; queue counts from the moment of sending.
    stages_ms: dict[str, float]
    # Batch size -> how many requests were computed in batches of it.
    batch_sizes: dict[int, int]
    # The load generator's CPU time a request [ms].
    generator_cpu_ms: float

    @property
    def mean_batch(self) -> float:
        """The mean size of the batches that were computed; 0 where no answer says."""
        batches = sum(count / size for size, count in self.batch_sizes.items())
        return sum(self.batch_sizes.values()) / batches if batches else 0.0


def drive(plan: Plan) -> Answers:
    """Run one phase of load and summarise it.

    Raises:
        RuntimeError: the generator failed; ends with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan_file, samples_file = Path(folder, "plan"), Path(folder, "samples")
        plan_file.write_bytes(msgspec.msgpack.encode(plan))
        command = [sys.executable, "-m", "bench.generator", str(plan_file), str(samples_file)]
        limit_s = plan.duration_s + DRAIN_S + 60
        run = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=limit_s, check=False)
        if run.returncode:
            raise RuntimeError(f"the load generator failed:\n{run.stderr}")
        return summarise(msgspec.msgpack.decode(samples_file.read_bytes(), type=Samples))


def summarise(phase: Samples) -> Answers:
    """Turn samples into figures."""
    good = [sample for sample in phase.samples if sample.status == 200]
    timings = [chunk.timing_ms for sample in good if (chunk := _chunk(sample))]
    count = max(1, len(phase.samples))
    return Answers(
        requests=len(phase.samples) + phase.unanswered,
        failed=len(phase.samples) - len(good) + phase.unanswered,
        rate_hz=len(good) / phase.elapsed_s if phase.elapsed_s else 0.0,
        latency=Latency.of([sample.latency_s for sample in good]),
        elapsed_s=phase.elapsed_s,
        stages_ms={stage: median(t[stage] for t in timings) for stage in STAGES if timings},
        batch_sizes=dict(sorted(Counter(int(timing["batch_size"]) for timing in timings).items())),
        generator_cpu_ms=phase.cpu_s / count * 1000,
    )


def _chunk(sample: Sample) -> ActionChunk | None:
    """Read an answer; None from an endpoint that is no policy."""
    head, _, content = sample.body.partition(b"\r\n\r\n")
    try:
        return answers.read(content, MSGPACK if MSGPACK.encode() in head else "application/json")
    except answers.WrongAnswer:
        return None
