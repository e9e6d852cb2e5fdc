"""`python -m loadtest --tier small` says whether a running server keeps a tier, or how many robots it serves.

Exit status: 0 the tier is kept; 1 a promise is missed; 2 the command itself is wrong; 3 nothing can be
judged, because the load generator was not up to it or something could not be read.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from loadtest import contract, report, search, tiers
from loadtest.contract import ContractError
from loadtest.judge import Judgement
from loadtest.run import Result, RunFailed, Target, run
from loadtest.tiers import Scenario, Tier, TierError

STATUS = {"kept": 0, "missed": 1, "not judged": 3}
NOTHING_JUDGED = 3
# What other programs may take of the server's host without being mentioned [cores].
QUIET_CORES = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load test that the command line describes, and return its exit status."""
    options = _parse(arguments)
    try:
        tier = _tier(options)
        target = _target(options)
        description = (
            contract.read(options.policy)
            if options.policy
            else contract.fetch(target.management_url, target.model)
        )
        contract.Contract.of(description)
        if options.find_robots:
            return _find(options, tier, target, description)
        result = run(target, tier, description, generators=options.generators, seed=options.seed, say=_say)
    except (TierError, ContractError, RunFailed, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (TierError, ValueError)) else NOTHING_JUDGED
    _say("", table(options.tier, result))
    _write(options, report.of_run(options.tier, target, description, result))
    return STATUS[result.judgement.verdict]


def table(name: str, result: Result) -> str:
    """Return a run's promises as text: promised, measured, verdict."""
    judgement = result.judgement
    rows = [("promise", "promised", "measured", "verdict")]
    rows += [(p.name, p.promised, p.measured, p.verdict) for p in judgement.promises]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
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


def _find(options: argparse.Namespace, tier: Tier, target: Target, description: dict[str, object]) -> int:
    tier = msgspec.structs.replace(tier, duration_s=options.trial_s)
    # The first run leaves the server warm.
    warm = msgspec.structs.replace(tier, warm_up_s=min(tier.warm_up_s, 2.0))
    results: list[Result] = []

    def trial(robots: int) -> search.Trial:
        trial_tier = msgspec.structs.replace(warm if results else tier, robots=robots)
        seed = options.seed + len(results)
        results.append(
            run(target, trial_tier, description, generators=options.generators, seed=seed, say=_say)
        )
        summary = search.summarise(results[-1])
        latency = "no right answer" if summary.latency_ms is None else f"{summary.latency_ms:.1f} ms"
        missed, name = ", ".join(summary.missed), next(iter(tier.latency_ms))
        _say(f"  {summary.verdict}: {name} {latency} {missed}".rstrip() + _company(results[-1]))
        return summary

    capacity = search.find(trial, tier.robots, options.max_robots)
    _say("", capacity.statement, f"robots per host in tier {options.tier}: {capacity.robots}")
    shown = next((r for r in reversed(results) if r.tier.robots == capacity.robots), results[-1])
    _write(options, report.of_run(options.tier, target, description, shown, capacity))
    return 0 if capacity.robots else 1


def _company(result: Result) -> str:
    """Say how busy other programs kept the server's host, where they did."""
    cores = result.bystanders or 0.0
    return f" (other programs took {cores:.1f} cores)" if cores > QUIET_CORES else ""


def _write(options: argparse.Namespace, written: report.Report) -> None:
    for path in report.write(written, options.report):
        _say(f"wrote {path}")


def _tier(options: argparse.Namespace) -> Tier:
    changes = {
        name: value
        for name in ("robots", "control_hz", "duration_s", "scenario")
        if (value := getattr(options, name)) is not None
    }
    return msgspec.convert(msgspec.to_builtins(tiers.select(options.tier, options.tiers)) | changes, Tier)


def _target(options: argparse.Namespace) -> Target:
    parts = urlsplit(options.url)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        raise ValueError(f"--url must begin with http:// or https://, got {options.url!r}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    beside = f"{parts.scheme}://{parts.hostname}"
    target = Target(
        url=options.url.rstrip("/"),
        management_url=(options.management_url or f"{beside}:{port + 1}").rstrip("/"),
        metrics_url=options.metrics_url or f"{beside}:{port + 2}/metrics",
        model=options.model,
        same_clock=True,
    )
    return Target(**{**vars(target), "same_clock": target.same_host or options.same_clock})


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description="Load a running server as a tier says, and judge whether it keeps the tier.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--tier", default="small", help="name of the tier")
    add("--tiers", type=Path, default=tiers.FILE, help="file of tiers")
    add("--url", default="http://127.0.0.1:8080", help="root of the inference API")
    add("--management-url", help="management API; None: one port above --url")
    add("--metrics-url", help="Prometheus metrics; None: two ports above --url")
    add("--model", default="vla", help="name of the served model")
    add(
        "--policy",
        type=Path,
        help="the served archive or its policy.json, where no management API is in reach",
    )
    add("--same-clock", action="store_true", help="the other host's clock is synchronised with this one's")
    add("--robots", type=int, help="robots; None: the tier's")
    add("--control-hz", type=float, help="rate at which each robot asks [Hz]; None: the tier's")
    add("--duration-s", type=float, help="time that is measured [s]; None: the tier's")
    add("--scenario", choices=Scenario.__args__, help="how requests arrive; None: the tier's")
    add(
        "--find-robots",
        action="store_true",
        help="search for the largest number of robots that keeps the tier",
    )
    add("--max-robots", type=int, default=4096, help="largest number of robots that the search tries")
    add("--trial-s", type=float, default=15.0, help="time that each run of the search measures [s]")
    add("--generators", type=int, default=1, help="processes of the load generator")
    add("--seed", type=int, default=0, help="of pictures, states, phases and clocks")
    add(
        "--report",
        type=Path,
        default=Path("build/loadtest"),
        help="where the report goes, without .html and .json",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
