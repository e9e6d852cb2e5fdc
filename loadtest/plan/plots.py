"""The plots of a plan."""

from collections.abc import Sequence
from typing import Any

from loadtest.figure import BLUE, GRID, HALF, INK, ORANGE, PALE, RED, figure, legend
from loadtest.plan.curve import Curve
from loadtest.plan.deployment import EVENT_S, Episode, Fleet, Response
from loadtest.tiers import Tier


@figure(HALF)
def batches(axes: Any, curve: Curve) -> None:
    """What a batch takes, by its size."""
    sizes = list(range(1, max(curve.batch_ms) + 1))
    axes.plot(sizes, [curve.of(size) for size in sizes], color=BLUE, lw=1.6, label="as simulated")
    seen = [
        (n, loop.batches_s[n] / count * 1000) for loop in curve.loops for n, count in loop.batches.items()
    ]
    axes.plot(*zip(*seen, strict=True), "o", ms=2.5, color=PALE, label="means of the loops")
    axes.set(xlabel="requests in a batch", ylabel="batch [ms]")
    axes.set_ylim(0, 1.6 * curve.of(max(curve.batch_ms)))
    legend(axes)


@figure(HALF)
def loads(axes: Any, shown: Response, tier: Tier, carried: int) -> None:
    """Latency of one replica over its robots."""
    name, bound = next(iter(tier.latency_ms.items()))
    axes.plot(shown.robots[1:], shown.p95_ms[1:], color=BLUE, lw=1.6, label="p95")
    axes.plot(shown.robots[1:], shown.wait_ms[1:], color=ORANGE, lw=1.6, label="mean wait")
    axes.axhline(bound, color=RED, lw=1, ls="--", label=f"bound of {name}")
    axes.axvline(carried, color=INK, lw=1, ls=":", label="carried")
    axes.set(xlabel="robots on one replica", ylabel="[ms]")
    axes.set_ylim(0, 3 * bound)
    legend(axes)


@figure()
def episodes(axes: Any, found: Sequence[Episode], tier: Tier) -> None:
    """Control steps without an answer in time while something happens."""
    for episode, colour in zip(found, (BLUE, ORANGE, INK), strict=False):
        times = [second.time_s - EVENT_S for second in episode.seconds]
        axes.plot(times, [100 * s.misses for s in episode.seconds], color=colour, lw=1.6, label=episode.name)
    axes.axhline(100 * tier.max_deadline_misses, color=RED, lw=1, ls="--", label="the tier's share")
    axes.axvspan(-EVENT_S, 0, color=GRID, alpha=0.6, lw=0)
    axes.set(xlabel="time since the event [s]", ylabel="steps without an answer [%]")
    axes.set_ylim(bottom=0)
    legend(axes)


@figure()
def fleets(axes: Any, found: Sequence[Fleet]) -> None:
    """Replicas over robots."""
    robots = [one.robots for one in found]
    axes.loglog(robots, [one.replicas for one in found], "o-", color=BLUE, lw=1.6, label="with spare hosts")
    axes.loglog(robots, [one.needed for one in found], "o-", color=PALE, lw=1.6, label="needed")
    axes.set(xlabel="robots", ylabel="replicas")
    axes.set_xticks(robots, [f"{count:,}" for count in robots])
    axes.minorticks_off()
    legend(axes)
