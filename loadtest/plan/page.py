"""The report of a plan for people."""

import math
from collections.abc import Iterator

import msgspec

from loadtest.document import Block, Plots, Table
from loadtest.plan import plots
from loadtest.plan.curve import Curve, summary
from loadtest.plan.deployment import Episode, Fleet, Response
from loadtest.tiers import Tier


class Planned(msgspec.Struct, frozen=True):
    """All that a plan says."""

    tier_name: str
    tier: Tier
    curve: Curve
    in_phase: float
    chosen: Fleet
    fleets: list[Fleet]
    shown: Response
    # A lost host, the same without spare hosts, and twice the robots.
    events: list[Episode]
    # Share of robots in phase -> robots that one replica carries.
    alike: dict[float, int]


def title(plan: Planned) -> str:
    """Return what was planned, in one line."""
    return f"Plan: {plan.chosen.robots} robots at {plan.tier.control_hz:g} Hz in tier {plan.tier_name}"


def blocks(plan: Planned) -> Iterator[Block]:
    """Yield the report's parts."""
    chosen = plan.chosen
    yield (
        f"One replica of {plan.curve.policy} carries {chosen.carried} robots. {chosen.robots} robots take "
        f"{chosen.replicas} replicas on {chosen.hosts} hosts with {chosen.gpus} GPUs. {chosen.needed} of "
        f"them would do while no host is lost. They cost {chosen.cost:,.2f} an hour, "
        f"{chosen.cost / chosen.robots:.4f} a robot."
    )
    yield "## What it is made of"
    yield Table(("measured", ""), list(summary(plan.curve).items()))
    yield Plots(
        {
            "A batch by its size": plots.batches(plan.curve),
            "One replica": plots.loads(plan.shown, plan.tier, chosen.carried),
        }
    )
    yield "## Fleets"
    yield _fleets(plan)
    yield Plots({"Replicas": plots.fleets(plan.fleets)})
    yield "## Robots in phase"
    rows = [(f"{share:.0%}", str(count)) for share, count in plan.alike.items()]
    yield Table(("robots whose steps begin at one moment", "robots a replica"), rows)
    yield "## What happens"
    yield Table(
        ("event", "worst second: steps without an answer", "until the tier is kept again [s]", "steps lost"),
        [_event(event) for event in plan.events],
    )
    yield Plots({"Steps without an answer in time": plots.episodes(plan.events, plan.tier)})


def _fleets(plan: Planned) -> Table:
    head = (
        *("robots", "replicas", "hosts", "GPUs", "cost an hour", "robots a replica", "p95 [ms]", "wait [ms]"),
        *("misses", "misses with a host less"),
    )
    rows = [
        (
            *(f"{one.robots:,}", str(one.replicas), str(one.hosts), str(one.gpus), f"{one.cost:,.2f}"),
            *(f"{one.load:.1f}", f"{one.p95_ms:.0f}", f"{one.wait_ms:.1f}"),
            *(f"{one.misses:.2%}", f"{one.misses_without:.2%}"),
        )
        for one in plan.fleets
    ]
    return Table(head, rows)


def _event(event: Episode) -> tuple[str, ...]:
    ended = "not within 7 minutes" if math.isinf(event.recovered_s) else f"{event.recovered_s:.0f}"
    return event.name, f"{event.worst:.1%}", ended, f"{event.lost_steps:,.0f}"
