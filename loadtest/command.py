"""`python -m loadtest --tier small` says whether a running server keeps a tier, or how many robots it serves.

Exit status: 0 the tier is kept; 1 a promise is missed; 2 the command itself is wrong; 3 nothing can be
judged, because the load generator was not up to it or something could not be read.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
import tyro

from loadtest import answers, document, known, page, report, search, tiers
from loadtest.access import NOTHING, Access
from loadtest.answers import ContractError
from loadtest.judge import Judgement
from loadtest.known import NotAsked
from loadtest.run import Result, RunFailed, Subject, Target, run
from loadtest.tiers import Scenario, Tier, TierError

STATUS = {"kept": 0, "missed": 1, "not judged": 3}
NOTHING_JUDGED = 3
# What other programs may take of the server's host without being mentioned [cores].
QUIET_CORES = 0.1


@dataclass(frozen=True)
class Options:
    """Load a running server as a tier says, and judge whether it keeps the tier."""

    # Name of the tier.
    tier: str = "small"
    # File of tiers.
    tiers: Path = tiers.FILE
    # Root of the inference API.
    url: str = "http://127.0.0.1:8080"
    # Management API; None: one port above --url.
    management_url: str | None = None
    # Prometheus metrics; None: two ports above --url.
    metrics_url: str | None = None
    # Name of the served model.
    model: str = "vla"
    # The served archive or its policy.json, where no management API is in reach.
    policy: Path | None = None
    # How the robots get in.
    access: Annotated[Access, tyro.conf.OmitArgPrefixes] = NOTHING
    # The other host's clock is synchronised with this one's.
    same_clock: bool = False
    # Robots; None: the tier's.
    robots: int | None = None
    # Rate at which each robot asks [Hz]; None: the tier's.
    control_hz: float | None = None
    # Time that is measured [s]; None: the tier's.
    duration_s: float | None = None
    # How requests arrive; None: the tier's.
    scenario: Scenario | None = None
    # Search for the largest number of robots that keeps the tier.
    find_robots: bool = False
    # Largest number of robots that the search tries.
    max_robots: int = 4096
    # Time that each run of the search measures [s].
    trial_s: float = 15.0
    # Processes of the load generator.
    generators: int = 1
    # Of pictures, states, phases and clocks.
    seed: int = 0
    # Where the report goes, without .html, .md and .json.
    report: Path = Path("build/loadtest")

    def chosen(self) -> Tier:
        """Return the tier, with what the command line changes of it.

        Raises:
            TierError, ValueError: there is no such tier, or a value is impossible.
        """
        names = ("robots", "control_hz", "duration_s", "scenario")
        changes = {name: value for name in names if (value := getattr(self, name)) is not None}
        return msgspec.convert(msgspec.to_builtins(tiers.select(self.tier, self.tiers)) | changes, Tier)

    def target(self) -> Target:
        """Return the server's addresses.

        Raises:
            ValueError: the URL is none.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ValueError(f"--url must begin with http:// or https://, got {self.url!r}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        beside = f"{parts.scheme}://{parts.hostname}"
        return Target(
            url=self.url.rstrip("/"),
            management_url=(self.management_url or f"{beside}:{port + 1}").rstrip("/"),
            metrics_url=self.metrics_url or f"{beside}:{port + 2}/metrics",
            model=self.model,
            access=self.access,
            synchronised=self.same_clock,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load test that the command line describes, and return its exit status."""
    options = tyro.cli(Options, prog="python -m loadtest", args=arguments)
    try:
        tier, target = options.chosen(), options.target()
        description = (
            answers.description_in(options.policy)
            if options.policy
            else answers.fetch(target.management_url, target.model)
        )
        asked = known.ask(target.predictions_url, target.access, description, options.seed)
        subject = Subject(target, description, asked)
        if options.find_robots:
            return _find(options, tier, subject)
        result = run(subject, tier, generators=options.generators, seed=options.seed, say=_say)
    except (TierError, ContractError, NotAsked, RunFailed, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (TierError, ValueError)) else NOTHING_JUDGED
    _say("", table(options.tier, result))
    _write(options, report.of_run(options.tier, subject, result))
    return STATUS[result.judgement.verdict]


def table(name: str, result: Result) -> str:
    """Return a run's promises as text: promised, measured, verdict."""
    judgement = result.judgement
    lines = [page.promises(judgement).text()]
    lines += [
        f"  {count:6} {error}: {judgement.examples[error]}" for error, count in judgement.errors.items()
    ]
    return "\n".join([*lines, *judgement.doubts, conclusion(name, result.tier, judgement) + _company(result)])


def conclusion(name: str, tier: Tier, judgement: Judgement) -> str:
    """Return the verdict as one sentence."""
    robots = f"{tier.robots} robots at {tier.control_hz:g} Hz"
    if judgement.verdict == "kept":
        return f"tier {name} is kept with {robots}"
    if judgement.verdict == "missed":
        return f"tier {name} is MISSED with {robots}: {', '.join(judgement.missed)}"
    open_ = ", ".join(p.name for p in judgement.promises if p.verdict == "not judged")
    return f"tier {name} can't be judged: {open_}"


def _find(options: Options, tier: Tier, subject: Subject) -> int:
    tier = msgspec.structs.replace(tier, duration_s=options.trial_s)
    # The first run leaves the server warm.
    warm = msgspec.structs.replace(tier, warm_up_s=min(tier.warm_up_s, 2.0))
    results: list[Result] = []

    def trial(robots: int) -> search.Trial:
        trial_tier = msgspec.structs.replace(warm if results else tier, robots=robots)
        seed = options.seed + len(results)
        results.append(run(subject, trial_tier, generators=options.generators, seed=seed, say=_say))
        summary = search.summarise(results[-1])
        latency = "no right answer" if summary.latency_ms is None else f"{summary.latency_ms:.1f} ms"
        missed, name = ", ".join(summary.missed), next(iter(tier.latency_ms))
        _say(f"  {summary.verdict}: {name} {latency} {missed}".rstrip() + _company(results[-1]))
        return summary

    capacity = search.find(trial, tier.robots, options.max_robots)
    _say("", capacity.statement, f"robots per host in tier {options.tier}: {capacity.robots}")
    shown = next((r for r in reversed(results) if r.tier.robots == capacity.robots), results[-1])
    _write(options, report.of_run(options.tier, subject, shown, capacity))
    return 0 if capacity.robots else 1


def _company(result: Result) -> str:
    """Say how busy other programs kept the server's host, where they did."""
    cores = result.bystanders or 0.0
    return f" (other programs took {cores:.1f} cores)" if cores > QUIET_CORES else ""


def _write(options: Options, written: report.Report) -> None:
    for path in document.write(options.report, written, page.title(written), list(page.blocks(written))):
        _say(f"wrote {path}")


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)
