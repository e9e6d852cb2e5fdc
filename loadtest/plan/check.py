"""The plan held against reality: robots of one replica, simulated and then searched for on this host."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from loadtest import search
from loadtest.document import Block, Table
from loadtest.plan.closed_loop import curve_of, measure, serving
from loadtest.plan.curve import Curve
from loadtest.plan.replica import carried
from loadtest.run import run
from loadtest.tiers import Tier

# As `python -m loadtest --find-robots --trial-s 6 --robots 16`: the runs' length [s], and the first number.
TRIAL_S = 6.0
FIRST = 16
LIMIT = 4096
CLIENTS = (1, 2, 4, 8, 16, 32)


class Compared(msgspec.Struct, frozen=True):
    """One policy: simulated and measured robots of one replica."""

    archive: str
    curve: Curve
    # Of the curve that was measured before the search, of that after it, and of both together.
    before: int
    after: int
    predicted: int
    capacity: search.Capacity
    # Cores that other programs took in the mean of the search.
    bystanders: float

    @property
    def difference(self) -> float | None:
        """How far the simulation is off, as a share of what was measured; None where that is 0."""
        return self.predicted / self.capacity.robots - 1 if self.capacity.robots else None


def compare(archive: Path, tier: Tier, say: Callable[[str], None]) -> Compared:
    """Serve an archive; measure its curve before and after the search for robots, and simulate.

    A host that others use changes its speed: the curves on both sides of the search tell by how much.
    """
    short = msgspec.structs.replace(tier, duration_s=TRIAL_S, warm_up_s=min(tier.warm_up_s, 2.0))
    with serving(archive) as server:
        say(f"{archive}: closed loops")
        before = measure(server, clients=CLIENTS, say=say)
        company: list[float] = []

        def trial(robots: int) -> search.Trial:
            tried = msgspec.structs.replace(short, robots=robots)
            result = run(server.subject, tried, seed=len(company), say=say)
            company.append(result.bystanders or 0.0)
            summary = search.summarise(result)
            say(f"  {summary.verdict}: {summary.latency_ms} ms {', '.join(summary.missed)}".rstrip())
            return summary

        capacity = search.find(trial, FIRST, LIMIT)
        say(f"{capacity.statement}; closed loops again")
        after = measure(server, clients=CLIENTS, say=say)
        both = [*before, *after]
        first, second, curve = (curve_of(server, loops) for loops in (before, after, both))
    return Compared(
        archive=str(archive),
        curve=curve,
        before=carried(first, short),
        after=carried(second, short),
        predicted=carried(curve, short),
        capacity=capacity,
        bystanders=sum(company) / len(company),
    )


def blocks(found: Sequence[Compared], tolerance: float) -> Iterator[Block]:
    """Yield the report's parts."""
    yield (
        "Robots of one replica that keep the tier, simulated from closed loops and searched for over HTTP, "
        f"on one host with the load generator on it. At most {tolerance:.0%} apart is wanted."
    )
    head = ("policy", "simulated", "of the loops before, after", "measured", "difference", "others' cores")
    yield Table(
        head,
        [
            (
                one.curve.policy,
                str(one.predicted),
                f"{one.before}, {one.after}",
                str(one.capacity.robots),
                "none measured" if one.difference is None else f"{one.difference:+.0%}",
                f"{one.bystanders:.1f}",
            )
            for one in found
        ],
    )
    for one in found:
        yield f"{one.curve.policy}: {one.capacity.statement}."
