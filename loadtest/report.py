"""The report of a run, as one structure."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from loadtest import host
from loadtest.judge import ADVERSARY, Judgement, measured, percentile, window
from loadtest.run import Result, Subject
from loadtest.samples import OK, Sample
from loadtest.search import Capacity
from loadtest.tiers import Tier
from loadtest.watch import ServerNumbers

SHOWN_PERCENTILES = (50.0, 90.0, 95.0, 99.0)


class Second(msgspec.Struct, frozen=True):
    """One second of the run."""

    # [s] since the measurement began; negative in ramp and warm-up.
    time_s: float
    # Right answers and failed requests that ended in this second.
    answers: int
    failures: int
    # Percentile -> latency of the right answers [ms]; empty without any.
    latency_ms: dict[str, float]


class Moment(msgspec.Struct, frozen=True):
    """The server's memory at one moment."""

    # [s] since the measurement began.
    time_s: float
    resident_gib: float
    accelerator_gib: float | None


class Generator(msgspec.Struct, frozen=True):
    """How the load generator itself did, in the measurement."""

    host: dict[str, Any]
    # Mean CPU of a process, of one core.
    cpu: float
    # 99th percentile of how late requests were sent [ms].
    lag_p99_ms: float
    # Cores that other programs took on this host; None where the server is on another one.
    bystanders: float | None


class Report(msgspec.Struct, frozen=True):
    """All that a run says."""

    written: str
    tier_name: str
    tier: Tier
    url: str
    policy: str
    verdict: str
    judgement: Judgement
    # Percentile or `max` -> latency of right answers [ms].
    latency_ms: dict[str, float]
    # Kind of client -> requests.
    requests: dict[str, int]
    # Right answers a second.
    throughput_hz: float
    # Size of the batch that an answer was computed in [requests] -> answers.
    batch_sizes: dict[int, int]
    seconds: list[Second]
    memory: list[Moment]
    generator: Generator
    # What the server counted over the whole run; None when its metrics could not be read.
    server: ServerNumbers | None
    capacity: Capacity | None = None


def of_run(
    name: str,
    subject: Subject,
    result: Result,
    capacity: Capacity | None = None,
) -> Report:
    """Summarise a run, and the search that it belongs to."""
    samples = measured(result.recording, result.tier)
    robots = [sample for sample in samples if sample.user != ADVERSARY]
    right = [sample for sample in robots if sample.outcome == OK]
    latency_ms = _latencies(right)
    return Report(
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        tier_name=name,
        tier=result.tier,
        url=subject.target.url,
        policy=f"{subject.description['name']} {subject.description['version']}",
        verdict=result.judgement.verdict,
        judgement=result.judgement,
        latency_ms=latency_ms | ({"max": max(sample.latency_ms for sample in right)} if right else {}),
        requests=dict(Counter(sample.user for sample in samples)),
        throughput_hz=len(right) / result.tier.duration_s,
        batch_sizes=dict(sorted(Counter(sample.batch for sample in right if sample.batch).items())),
        seconds=_seconds(result),
        memory=[
            Moment(
                round(reading.time_s - result.begin_s, 2),
                reading.resident / 2**30,
                None if reading.accelerator is None else reading.accelerator / 2**30,
            )
            for reading in result.memory
        ],
        generator=_generator(result, robots),
        server=result.server,
        capacity=capacity,
    )


def _latencies(right: Sequence[Sample]) -> dict[str, float]:
    values = [sample.latency_ms for sample in right]
    return {f"p{percent:g}": percentile(values, percent) for percent in SHOWN_PERCENTILES if values}


def _seconds(result: Result) -> list[Second]:
    """Return every second of the run in which a robot's request ended."""
    ended: dict[int, list[Sample]] = defaultdict(list)
    for sample in result.recording.samples:
        if sample.user != ADVERSARY:
            ended[int((sample.end_s - result.begin_s) // 1)].append(sample)
    seconds = []
    for time_s in range(min(ended, default=0), max(ended, default=-1) + 1):
        samples = ended[time_s]
        right = [sample for sample in samples if sample.outcome == OK]
        seconds.append(Second(time_s, len(right), len(samples) - len(right), _latencies(right)))
    return seconds


def _generator(result: Result, robots: list[Sample]) -> Generator:
    begin, end = window(result.recording, result.tier)
    beats = [beat.cpu for beat in result.recording.beats if begin <= beat.time_s < end]
    return Generator(
        host=host.describe(),
        cpu=sum(beats) / len(beats) if beats else 0.0,
        lag_p99_ms=percentile((sample.lag_ms for sample in robots), 99) if robots else 0.0,
        bystanders=result.bystanders,
    )
