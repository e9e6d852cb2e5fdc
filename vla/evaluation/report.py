"""What the episodes add up to: rates with their intervals, thresholds, tables."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vla.evaluation.conditions import CONDITIONS, Condition
from vla.evaluation.episodes import Episode
from vla.tabletop.commands import TASKS

# Two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """Successes among episodes."""

    successes: int
    episodes: int

    @property
    def value(self) -> float:
        """The share of successes in [0, 1]; 0 of no episodes."""
        return self.successes / self.episodes if self.episodes else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval (Wilson 1927), in [0, 1]; all of it for no episodes."""
        n = self.episodes
        if n == 0:
            return 0.0, 1.0
        spread = _Z * math.sqrt(self.value * (1 - self.value) / n + _Z**2 / (4 * n**2))
        centre, scale = self.value + _Z**2 / (2 * n), 1 + _Z**2 / n
        return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)

    def percent(self, digits: int = 0) -> str:
        """Say the share in percent, with its interval in brackets."""
        low, high = self.interval
        return f"{100 * self.value:.{digits}f} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def ratio(unseen: Rate, seen: Rate) -> tuple[float, float, float]:
    """Return the ratio of two independent shares, and its 95 % interval, infinite where `seen` may be 0.

    Of the Wilson intervals of both, by the method of variance estimates recovery: Donner & Zou 2012,
    "Closed-form confidence intervals for functions of the normal mean and standard deviation".
    """
    p, q = unseen.value, seen.value
    (low, high), (least, most) = unseen.interval, seen.interval
    if q == 0:
        return math.inf, 0.0, math.inf
    below = (p * q) ** 2 - low * most * (2 * p - low) * (2 * q - most)
    above = (p * q) ** 2 - high * least * (2 * p - high) * (2 * q - least)
    bottom, top = most * (2 * q - most), least * (2 * q - least)
    return (
        p / q,
        max(0.0, (p * q - math.sqrt(max(0.0, below))) / bottom) if bottom > 0 else 0.0,
        (p * q + math.sqrt(max(0.0, above))) / top if top > 0 else math.inf,
    )


@dataclass(frozen=True)
class Summary:
    """One condition with one policy."""

    condition: Condition
    # "http", "in-process" or, for the baselines, "script".
    source: str
    total: Rate
    by_task: dict[str, Rate]
    # How often the goal's task first happened to the block that the command named: the original block in most
    # conditions, the other one in `wrong_colour`.
    named_block: Rate
    # Mean length of the successful episodes [control steps]; None of none.
    steps: float | None
    requests: int
    # Latency that the robot sees [ms]; None of no requests.
    latency_mean_ms: float | None
    latency_p95_ms: float | None
    # Robots that shared a forward pass -> requests.
    batch_sizes: dict[int, int]
    # Requests whose chunk the safety layer changed.
    interventions: int
    # Code of a refusal -> episodes that it ended.
    errors: dict[str, int]
    # Of each task's successes, those called done within a second; of all episodes, those that the policy
    # calls done before a success or without one. Empty and None where the policy says nothing of it.
    done_in_time: dict[str, Rate] = field(default_factory=dict)
    done_early: Rate | None = None
    # Of all episodes: success that stayed for the dwell; and those in which other blocks were moved.
    stayed: Rate = field(default_factory=lambda: Rate(0, 0))
    disturbed: Rate = field(default_factory=lambda: Rate(0, 0))


@dataclass(frozen=True)
class Threshold:
    """A bound on a condition's success rate."""

    condition: Condition
    rate: float

    @classmethod
    def parse(cls, text: str) -> "Threshold":
        """Read `held_out=0.95`.

        Raises:
            ValueError: the condition is unknown or the rate is not in [0, 1].
        """
        name, _, number = text.partition("=")
        if name not in CONDITIONS:
            raise ValueError(
                f"threshold {text!r}: unknown condition {name!r}; valid: {', '.join(CONDITIONS)}"
            )
        try:
            rate = float(number)
        except ValueError:
            rate = math.nan
        if not 0 <= rate <= 1:
            raise ValueError(f"threshold {text!r}: needs a rate from 0 to 1, as in {name}=0.95")
        return cls(name, rate)


def summarise(source: str, episodes: Sequence[Episode]) -> Summary:
    """Add up the episodes of one condition with one policy; at least one episode."""
    latency = [value for episode in episodes for value in episode.latency_ms]
    successes = [episode for episode in episodes if episode.success]
    steps = [episode.steps for episode in successes]
    says_done = any(episode.says_done for episode in episodes)
    return Summary(
        condition=episodes[0].trial.condition,
        source=source,
        total=_rate(episodes),
        by_task={task: _rate([e for e in episodes if e.trial.goal.task == task]) for task in TASKS},
        named_block=Rate(sum(e.outcome == e.trial.commanded.colour for e in episodes), len(episodes)),
        steps=float(np.mean(steps)) if steps else None,
        requests=len(latency),
        latency_mean_ms=float(np.mean(latency)) if latency else None,
        latency_p95_ms=float(np.percentile(latency, 95)) if latency else None,
        batch_sizes=dict(sorted(Counter(size for e in episodes for size in e.batch_sizes).items())),
        interventions=sum(episode.interventions for episode in episodes),
        errors=dict(Counter(episode.error for episode in episodes if episode.error is not None)),
        done_in_time={task: _in_time(successes, task) for task in TASKS} if says_done else {},
        done_early=Rate(sum(e.done_early for e in episodes), len(episodes)) if says_done else None,
        stayed=Rate(sum(e.stayed for e in episodes), len(episodes)),
        disturbed=Rate(sum(e.disturbed > 0 for e in episodes), len(episodes)),
    )


def largest_difference(one: Sequence[Episode], other: Sequence[Episode]) -> float | None:
    """Largest difference between the first chunks of the same trials [action unit]; None: nothing to compare.

    Later chunks are of other observations, since the smallest difference moves the robot elsewhere.
    """
    differences = [
        float(np.abs(a.first - b.first).max())
        for a, b in zip(one, other, strict=True)
        if a.first is not None and b.first is not None
    ]
    return max(differences, default=None)


def misses(
    summaries: Sequence[Summary], require: Sequence[Threshold], at_most: Sequence[Threshold]
) -> list[str]:
    """Say which thresholds are missed, one line each; a threshold holds for every policy of its condition."""
    found = []
    for summary in summaries:
        name, value = f"{summary.condition} ({summary.source})", summary.total.value
        bounds = [t.rate for t in require if t.condition == summary.condition]
        found += [f"{name}: success {value:.3f} is below {bound:g}" for bound in bounds if value < bound]
        bounds = [t.rate for t in at_most if t.condition == summary.condition]
        found += [f"{name}: success {value:.3f} is above {bound:g}" for bound in bounds if value > bound]
    return found


def markdown(summaries: Sequence[Summary]) -> str:
    """Return the table of results; success in percent, the 95 % Wilson interval in brackets.

    `done`: of each task's successes, those called done within a second; of all, those called done too early.
    """
    head = ["condition", "policy", *TASKS, "all [95 %]", "named block", "steps", "latency mean / p95 [ms]"]
    return table(
        [
            [*head, "robots a batch: mean (max)", "clamped or held", f"done: {' / '.join(TASKS)}; too early"],
            *map(_row, summaries),
        ]
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells, the first one the headings, as a Markdown table with aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    )


def _row(summary: Summary) -> list[str]:
    low, high = summary.total.interval
    latency, sizes = summary.latency_mean_ms, summary.batch_sizes
    batch = sum(size * count for size, count in sizes.items()) / max(1, sum(sizes.values()))
    served = latency is not None and summary.source != "script"
    failed = "".join(f", {count} x {code}" for code, count in summary.errors.items())
    return [
        summary.condition,
        summary.source,
        *(_percent(rate.value) if rate.episodes else "-" for rate in summary.by_task.values()),
        f"{_percent(summary.total.value)} [{_percent(low)}, {_percent(high)}]{failed}",
        _percent(summary.named_block.value),
        "-" if summary.steps is None else f"{summary.steps:.1f}",
        f"{latency:.1f} / {summary.latency_p95_ms:.1f}" if served else "-",
        f"{batch:.1f} ({max(sizes)})" if sizes else "-",
        f"{summary.interventions} of {summary.requests}" if served else "-",
        _done(summary),
    ]


def _in_time(successes: Sequence[Episode], task: str) -> Rate:
    mine = [episode for episode in successes if episode.trial.goal.task == task]
    return Rate(sum(episode.done_in_time for episode in mine), len(mine))


def _done(summary: Summary) -> str:
    if summary.done_early is None:
        return "-"
    said = [_percent(rate.value) if rate.episodes else "-" for rate in summary.done_in_time.values()]
    return f"{' / '.join(said)}; {_percent(summary.done_early.value)}"


def _rate(episodes: Sequence[Episode]) -> Rate:
    return Rate(sum(episode.success for episode in episodes), len(episodes))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")
