"""Runs phases of load in the generator's own process, and reads what the answers say."""

import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.generator import DRAIN_S, Plan, Sample, Samples

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
        p50, p95, p99 = np.percentile(np.asarray(values_s) * 1000, (50, 95, 99)).tolist()
        return cls(p50, p95, p99, float(np.mean(values_s)) * 1000)


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
    timings = [timing for sample in good if (timing := _timing(sample)) is not None]
    count = max(1, len(phase.samples))
    return Answers(
        requests=len(phase.samples) + phase.unanswered,
        failed=len(phase.samples) - len(good) + phase.unanswered,
        rate_hz=len(good) / phase.elapsed_s if phase.elapsed_s else 0.0,
        latency=Latency.of([sample.latency_s for sample in good]),
        elapsed_s=phase.elapsed_s,
        stages_ms={stage: float(np.median([t[stage] for t in timings])) for stage in STAGES if timings},
        batch_sizes=dict(sorted(Counter(int(timing["batch_size"]) for timing in timings).items())),
        generator_cpu_ms=phase.cpu_s / count * 1000,
    )


def _timing(sample: Sample) -> dict[str, Any] | None:
    """Return an answer's `timing_ms`; None for an endpoint that has none."""
    head, _, content = sample.body.partition(b"\r\n\r\n")
    decode = msgspec.msgpack.decode if b"application/msgpack" in head else msgspec.json.decode
    try:
        return decode(content)["timing_ms"]
    except (msgspec.DecodeError, KeyError):
        return None
