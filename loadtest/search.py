"""How many robots a host carries: a bracketed search over runs that are each kept or not.

    double       1, 2, 4, ... robots, one run each, until a run is not kept
    halve        the bracket between the last kept and the first not kept, one run each, down to a step of 5 %
    confirm      a number is carried when two of at most three runs keep the tier; step up while it is, else
                 down

Near the limit one run says little: chance decides whether it is kept. A majority of three is less at the
mercy of a single lucky or unlucky run, at both ends of the bracket.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from loadtest.judge import ADVERSARY, Verdict, measured, percentile
from loadtest.run import Result
from loadtest.samples import OK, Sample

# The search's resolution, as a share of the number of robots.
STEP = 0.05
MAJORITY = 2
# The interval that is stated holds the true percentile with this confidence.
CONFIDENCE = 0.95
RESAMPLES = 1000


class Trial(msgspec.Struct, frozen=True):
    """One run of the search."""

    robots: int
    verdict: Verdict
    # Names of the promises that were missed.
    missed: list[str]
    # The tier's first percentile, measured [ms]; None without a right answer.
    latency_ms: float | None
    # Bounds of its confidence interval [ms].
    interval_ms: tuple[float, float] | None
    # Why it could not be judged, where it could not.
    doubts: list[str] = []


class Capacity(msgspec.Struct, frozen=True):
    """What a search found."""

    # The largest number of robots that the host carries; 0: not even one.
    robots: int
    # Whether more robots were tried and not carried; otherwise the search's limit ended it.
    bounded: bool
    statement: str
    trials: list[Trial]


def find(trial: Callable[[int], Trial], start: int, limit: int) -> Capacity:
    """Search for the largest number of robots that the host carries.

    Args:
        trial: runs that many robots once
        start: the first number that is tried
        limit: the largest number that may be tried
    """
    trials: list[Trial] = []

    def kept(robots: int) -> bool:
        trials.append(trial(robots))
        return trials[-1].verdict == "kept"

    robots, bounded = _confirm(kept, trials, once(kept, start, limit), limit)
    return Capacity(robots, bounded, _statement(robots, trials, bounded=bounded), trials)


def once(kept: Callable[[int], bool], start: int, limit: int) -> int:
    """Return the largest number that is kept, to a step of 5 %, of one run each; 0 where not one is.

    Args:
        kept: whether that many robots are carried
        start: the first number that is tried
        limit: the largest number that may be tried
    """
    low, high = _bracket(kept, start, limit)
    while high - low > step_of(low):
        middle = (low + high) // 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def step_of(robots: int) -> int:
    """Return the search's step at a number of robots."""
    return max(1, round(STEP * robots))


def _bracket(kept: Callable[[int], bool], start: int, limit: int) -> tuple[int, int]:
    """Return a number that one run kept, or 0, and a larger one that one run did not keep, or limit + 1."""
    low, high, robots = 0, limit + 1, min(start, limit)
    while low < robots < high:
        if kept(robots):
            low = robots
            robots = min(2 * robots, limit) if high > limit else low
        else:
            high = robots
            robots = robots // 2 if low == 0 else low
    return low, high


def _confirm(kept: Callable[[int], bool], trials: list[Trial], robots: int, limit: int) -> tuple[int, bool]:
    """Step to the largest number that a majority of its runs keeps."""

    def carried(number: int) -> bool:
        runs = [t.verdict == "kept" for t in trials if t.robots == number]
        while max(sum(runs), len(runs) - sum(runs)) < MAJORITY:
            runs.append(kept(number))
        return sum(runs) >= MAJORITY

    while robots > 0 and not carried(robots):
        robots = max(0, robots - step_of(robots))
    while (above := min(robots + step_of(robots), limit)) > robots:
        if not carried(above):
            return robots, True
        robots = above
    return robots, False


def _statement(robots: int, trials: Sequence[Trial], *, bounded: bool) -> str:
    if robots == 0:
        return f"not one robot is carried: {_tally(1, trials)}"
    said = f"{robots} robots: {_tally(robots, trials)}"
    above = min((t.robots for t in trials if t.robots > robots), default=0)
    if bounded and above:
        return f"{said}; {above} robots: {_tally(above, trials)}"
    return f"{said}; more were not tried"


def _tally(robots: int, trials: Sequence[Trial]) -> str:
    """Say how the runs of one number of robots ended."""
    runs = [t for t in trials if t.robots == robots]
    count = sum(t.verdict == "kept" for t in runs)
    text = f"kept in {count} of {len(runs)} runs"
    if missed := sorted({name for t in runs for name in t.missed}):
        text += f", missed {', '.join(missed)}"
    if open_ := [t for t in runs if t.verdict == "not judged"]:
        text += (
            f", {len(open_)} could not be judged ({'; '.join(sorted({d for t in open_ for d in t.doubts}))})"
        )
    if intervals := [t.interval_ms for t in runs if t.interval_ms]:
        low, high = min(i[0] for i in intervals), max(i[1] for i in intervals)
        text += f" (latency {low:.1f} to {high:.1f} ms with {CONFIDENCE:.0%} confidence)"
    return text


def summarise(result: Result) -> Trial:
    """Return a run as one trial of the search."""
    percent = next(iter(result.tier.percentiles))
    samples = [s for s in measured(result.recording, result.tier) if s.user != ADVERSARY and s.outcome == OK]
    return Trial(
        result.tier.robots,
        result.judgement.verdict,
        result.judgement.missed,
        percentile((s.latency_ms for s in samples), percent) if samples else None,
        interval_ms(samples, percent) if samples else None,
        result.judgement.doubts,
    )


def interval_ms(samples: Sequence[Sample], percent: float) -> tuple[float, float]:
    """Return the 95 % confidence interval of a latency's percentile [ms].

    Whole seconds are drawn with replacement, since requests of one second share their fate (the block
    bootstrap of Künsch 1989), and the percentile of each draw is taken.
    """
    seconds: dict[int, list[float]] = {}
    for sample in samples:
        seconds.setdefault(int(sample.due_s), []).append(sample.latency_ms)
    blocks = [np.array(values) for values in seconds.values()]
    random = np.random.default_rng(0)
    draws = random.integers(0, len(blocks), (RESAMPLES, len(blocks)))
    method = "inverted_cdf"  # the nearest rank
    drawn = [
        np.percentile(np.concatenate([blocks[i] for i in draw]), percent, method=method) for draw in draws
    ]
    outside = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn, [outside, 100 - outside])
    return float(low), float(high)
