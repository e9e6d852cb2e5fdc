"""How many replicas a fleet needs, from a measured curve: `python -m loadtest plan --robots 10000`.

One replica is simulated event by event (the gate's batching, its queue, deadlines), the fleet on what that
gave: robots a replica, replicas, hosts, GPUs, cost; robots that ask in phase; a lost host; an autoscaler that
is late. With --check archives are served here, measured, simulated, and held against the search for robots.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
import tyro

from loadtest import document, tiers
from loadtest.answers import ContractError
from loadtest.known import NotAsked
from loadtest.plan import check, page
from loadtest.plan.curve import Curve, CurveError
from loadtest.plan.deployment import Autoscaler, Setting, Site, fleet, growth, lost_host, response
from loadtest.plan.replica import carried
from loadtest.run import RunFailed
from loadtest.tiers import Tier, TierError

SITE, SCALER = Site(), Autoscaler()
# Shares of robots in phase that are shown.
IN_PHASE = (0.0, 0.25, 1.0)
# Fleets of the table.
FLEETS = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


@dataclass(frozen=True)
class Options:
    """What is planned, and from what."""

    # Robots of the fleet.
    robots: int = 10_000
    # Rate at which each asks [Hz]; None: the tier's.
    control_hz: float | None = None
    # Name of the tier that every robot is promised.
    tier: str = "small"
    # File of tiers.
    tiers: Path = tiers.FILE
    # What `python -m loadtest curve` measured.
    curve: Path = Path("build/curve.json")
    # Share of the robots whose control steps begin at one moment, from 0 to 1.
    in_phase: float = 0.0
    # Where the replicas run.
    site: Annotated[Site, tyro.conf.OmitArgPrefixes] = SITE
    # How replicas are added.
    autoscaler: Annotated[Autoscaler, tyro.conf.OmitArgPrefixes] = SCALER
    # Archives to serve here and now: the plan's robots a replica against the measured ones. Minutes each.
    check: tuple[Path, ...] = ()
    # The check fails beyond this difference, as a share.
    within: float = 0.15
    # The report, without .html, .md and .json.
    report: Path = Path("build/plan")

    def __post_init__(self) -> None:
        for name in ("robots", "control_hz"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {value}")
        if not 0 <= self.in_phase <= 1:
            raise ValueError(f"--in-phase is a share from 0 to 1, got {self.in_phase}")

    @property
    def chosen(self) -> Tier:
        """The tier, with what the command line changes of it."""
        tier = tiers.select(self.tier, self.tiers)
        return tier if self.control_hz is None else msgspec.structs.replace(tier, control_hz=self.control_hz)


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, or check the plan against this host: 0; 1 too far off; 2 a wrong command; 3 nothing to judge."""
    try:
        options = tyro.cli(Options, prog="python -m loadtest plan", description=__doc__, args=arguments)
        if options.check:
            return _check(options)
        return _plan(options)
    except (CurveError, TierError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ContractError, NotAsked, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3


def _plan(options: Options) -> int:
    tier, site, curve = options.chosen, options.site, Curve.read(options.curve)
    count = carried(curve, tier, in_phase=options.in_phase)
    if count == 0:
        _say(f"not one robot keeps the tier {options.tier} on a replica of {curve.policy}")
        return 1
    shown = response(curve, tier, count, options.in_phase)
    sizes = sorted({*FLEETS, options.robots})
    plans = [fleet(robots, count, shown, site) for robots in sizes]
    chosen = next(plan for plan in plans if plan.robots == options.robots)
    alone, scaler = fleet(options.robots, count, shown, replace(site, spare_hosts=0)), options.autoscaler
    events = [
        lost_host(chosen, Setting(shown, tier, site, scaler)),
        lost_host(alone, Setting(shown, tier, site, scaler), "a lost host without spares"),
        growth(chosen, Setting(shown, tier, site, scaler)),
    ]
    alike = {share: carried(curve, tier, in_phase=share) for share in IN_PHASE}
    written = page.Planned(options.tier, tier, curve, options.in_phase, chosen, plans, shown, events, alike)
    _write(options, written, page.title(written), list(page.blocks(written)))
    return 0


def _check(options: Options) -> int:
    found = [check.compare(archive, options.chosen, _say) for archive in options.check]
    _write(options, found, "Plan against measurement", list(check.blocks(found, options.within)))
    return int(any(one.difference is None or abs(one.difference) > options.within for one in found))


def _write(options: Options, data: object, title: str, blocks: list[document.Block]) -> None:
    print(document.markdown(title, blocks))
    for path in document.write(options.report, data, title, blocks):
        _say(f"wrote {path}")


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)
