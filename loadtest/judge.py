"""The verdict: what a tier promises against what was measured. Pure functions of raw samples."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from loadtest.samples import EXPIRED, OK, WRONG, Beat, Recording, Sample
from loadtest.tiers import Tier

ADVERSARY = "adversary"
# A percentile is judged when at least this many answers lie above it.
TAIL = 2
# The load generator is short of CPU when it takes this much of a core, in the mean of the measurement.
MAX_CPU = 0.85
# It holds its rates when 99 % of its requests are sent at most this late: a share of the tightest bound ...
MAX_LAG_SHARE = 0.1
# ... and never stricter than this, which is what timers achieve [ms].
MIN_LAG_MS = 2.0
# Other programs on the server's host may take this share of it; beyond, a late answer may be their doing.
MAX_COMPANY = 0.1
# A shorter time without any answer is counted as failures, not called an outage [s].
MIN_OUTAGE_S = 0.5
GIB = 2.0**30

Verdict = Literal["kept", "missed", "not judged"]


class Promise(msgspec.Struct, frozen=True):
    """One line of a tier, judged."""

    name: str
    promised: str
    measured: str
    verdict: Verdict


class Outage(msgspec.Struct, frozen=True):
    """A time in which no robot got an answer."""

    # [s] since the measurement began
    start_s: float
    duration_s: float
    # Class of error -> requests.
    errors: dict[str, int]


class Judgement(msgspec.Struct, frozen=True):
    """All promises of a tier, judged."""

    promises: list[Promise]
    # Why the measurement can't be trusted, be it the load generator or other programs; empty when it can.
    doubts: list[str]
    outages: list[Outage]
    # Class of error -> requests.
    errors: dict[str, int]
    # Class of error -> what the first of them said.
    examples: dict[str, str]

    @property
    def verdict(self) -> Verdict:
        """`missed` when any promise is, else `not judged` when any could not be, else `kept`."""
        verdicts = [promise.verdict for promise in self.promises]
        return "missed" if "missed" in verdicts else "not judged" if "not judged" in verdicts else "kept"

    @property
    def missed(self) -> list[str]:
        """Names of the promises that were missed."""
        return [promise.name for promise in self.promises if promise.verdict == "missed"]


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed (nearest rank).

    Raises:
        ValueError: there are no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no percentile of no values")
    # Multiplied first: 0.07 * 100 is above 7, and its ceiling would be 8.
    return ordered[max(1, math.ceil(percent * len(ordered) / 100)) - 1]


def window(recording: Recording, tier: Tier) -> tuple[float, float]:
    """Return begin and end of the measurement [s since the epoch]: after all robots ran, and a warm-up."""
    begin = recording.ready_s + tier.warm_up_s
    return begin, begin + tier.duration_s


def measured(recording: Recording, tier: Tier) -> list[Sample]:
    """Return the requests that were due inside the measurement."""
    begin, end = window(recording, tier)
    return [sample for sample in recording.samples if begin <= sample.due_s < end]


def judge(
    recording: Recording,
    tier: Tier,
    memory_bytes: Sequence[float],
    findings: Sequence[str] = (),
    company: float = 0.0,
) -> Judgement:
    """Judge every promise of a tier.

    Args:
        recording: what the load generator wrote down
        tier: the promises
        memory_bytes: the server's memory, read from time to time during the run; empty when nobody could
        findings: what was wrong with the answers already before the load
        company: share of the server's host that other programs took meanwhile

    A load generator that was short of CPU, or sent late, leaves latency and deadlines unjudged; so do other
    programs on the server's host where these promises are missed, not where they are kept all the same. Wrong
    answers, failures, outages and memory are the server's in any case.
    """
    begin, end = window(recording, tier)
    samples = measured(recording, tier)
    robots = [sample for sample in samples if sample.user != ADVERSARY]
    beats = [beat for beat in recording.beats if begin <= beat.time_s < end]
    weak, crowded = _doubts(robots, beats, tier), _crowded(company)
    outages = find_outages(robots, begin, min(end, recording.samples[-1].end_s) if recording.samples else end)
    errors = Counter(sample.outcome for sample in samples if sample.outcome != OK)
    promises = [
        *(_excused(promise, crowded) for promise in _timed(robots, tier, weak)),
        _content(samples, findings),
        _failures(samples, tier),
        _outages(outages),
        _memory(memory_bytes, tier),
    ]
    examples = {sample.outcome: sample.detail for sample in reversed(samples) if sample.outcome != OK}
    doubts = [*weak, *crowded, *(f"before the load: {finding}" for finding in findings)]
    return Judgement(promises, doubts, outages, dict(errors.most_common()), examples)


def find_outages(robots: Sequence[Sample], begin_s: float, end_s: float) -> list[Outage]:
    """Return the times in which requests failed without an answer and none succeeded, of 0.5 s and more.

    An outage lasts from the sending of its first failed request to the next right answer, or to `end_s`.
    """
    found, failing = [], list[Sample]()
    for sample in sorted(robots, key=lambda sample: sample.end_s):
        if sample.unserved:
            failing.append(sample)
        elif sample.outcome == OK and failing:
            found.append(_outage(failing, begin_s, sample.end_s))
            failing = []
    if failing:
        found.append(_outage(failing, begin_s, max(end_s, failing[-1].end_s)))
    return [outage for outage in found if outage.duration_s >= MIN_OUTAGE_S]


def _outage(failing: Sequence[Sample], begin_s: float, over_s: float) -> Outage:
    start_s = min(sample.due_s for sample in failing)
    errors = Counter(sample.outcome for sample in failing)
    return Outage(start_s - begin_s, over_s - start_s, dict(errors.most_common()))


def _doubts(robots: Sequence[Sample], beats: Sequence[Beat], tier: Tier) -> list[str]:
    """Say why the load generator can't be trusted."""
    if not robots or not beats:
        return ["the load generator recorded no request inside the measurement"]
    doubts = []
    cpu = sum(beat.cpu for beat in beats) / len(beats)
    if cpu > MAX_CPU:
        doubts.append(
            f"the load generator took {cpu:.0%} of a core, more than {MAX_CPU:.0%}: it was short of CPU; "
            "start more of them (--generators), or start it on another host"
        )
    lag_ms = percentile((sample.lag_ms for sample in robots), 99)
    limit_ms = max(MIN_LAG_MS, MAX_LAG_SHARE * min(tier.latency_ms.values()))
    if lag_ms > limit_ms:
        doubts.append(
            f"1 % of the requests were sent {lag_ms:.1f} ms late or later, more than {limit_ms:g} ms: the "
            "load generator could not hold its rates; quieten this host, or start it on another one"
        )
    return doubts


def _crowded(company: float) -> list[str]:
    if company <= MAX_COMPANY:
        return []
    return [
        f"other programs took {company:.0%} of the server's host, more than {MAX_COMPANY:.0%}: what is late "
        "may be their doing; quieten the host, and run again"
    ]


def _timed(robots: Sequence[Sample], tier: Tier, doubts: Sequence[str]) -> Iterator[Promise]:
    """Judge the promises of time."""
    for name, bound_ms in tier.latency_ms.items():
        yield _latency(robots, name, bound_ms, doubts)
    yield _deadlines(robots, tier, doubts)


def _excused(promise: Promise, crowded: Sequence[str]) -> Promise:
    """Leave a promise open that was missed in company."""
    missed = promise.verdict == "missed" and bool(crowded)
    return msgspec.structs.replace(promise, verdict="not judged") if missed else promise


def _latency(robots: Sequence[Sample], name: str, bound_ms: float, doubts: Sequence[str]) -> Promise:
    percent = float(name.removeprefix("p"))
    values = [sample.latency_ms for sample in robots if sample.outcome == OK]
    title, promised = f"latency {name}", f"under {bound_ms:g} ms"
    if len(values) * (100 - percent) < TAIL * 100:
        return Promise(title, promised, f"only {len(values)} right answers", "not judged")
    value = percentile(values, percent)
    return Promise(title, promised, f"{value:.1f} ms", _verdict(kept=value < bound_ms, doubts=doubts))


def _deadlines(robots: Sequence[Sample], tier: Tier, doubts: Sequence[str]) -> Promise:
    steps = sum(1 + sample.skipped for sample in robots)
    late = sum(sample.outcome == OK and sample.latency_ms > tier.deadline_ms for sample in robots)
    expired = sum(sample.outcome == EXPIRED for sample in robots)
    share = (late + expired + steps - len(robots)) / steps if steps else 0.0
    text = f"{share:.2%} of {steps} steps"
    verdict = _verdict(kept=share <= tier.max_deadline_misses, doubts=doubts) if steps else "not judged"
    return Promise("deadline misses", f"at most {tier.max_deadline_misses:.2%}", text, verdict)


def _content(samples: Sequence[Sample], findings: Sequence[str]) -> Promise:
    wrong = Counter(sample.outcome for sample in samples if sample.outcome.startswith(WRONG))
    kinds = ", ".join(f"{count} {kind.removeprefix(WRONG)}" for kind, count in wrong.most_common())
    text = f"{wrong.total()}{f' ({kinds})' if kinds else ''}"
    text += f", and {len(findings)} before the load" if findings else ""
    return Promise("wrong answers", "none", text, _verdict(kept=not wrong and not findings))


def _failures(samples: Sequence[Sample], tier: Tier) -> Promise:
    failed = sum(sample.outcome not in (OK, EXPIRED) for sample in samples)
    share = failed / len(samples) if samples else 0.0
    text = f"{share:.2%} of {len(samples)} requests"
    verdict = _verdict(kept=share <= tier.max_failures) if samples else "not judged"
    return Promise("failures", f"at most {tier.max_failures:.2%}", text, verdict)


def _outages(outages: Sequence[Outage]) -> Promise:
    times = ", ".join(f"{outage.duration_s:.1f} s from {outage.start_s:.1f} s on" for outage in outages)
    return Promise("outages", "none", times or "none", _verdict(kept=not outages))


def _memory(memory_bytes: Sequence[float], tier: Tier) -> Promise:
    promised = f"at most {tier.memory_gib:g} GiB"
    if not memory_bytes:
        return Promise("memory", promised, "could not be read", "not judged")
    peak = max(memory_bytes) / GIB
    return Promise("memory", promised, f"{peak:.2f} GiB", _verdict(kept=peak <= tier.memory_gib))


def _verdict(*, kept: bool, doubts: Sequence[str] = ()) -> Verdict:
    return "not judged" if doubts else "kept" if kept else "missed"
