"""`python -m bench`: how close the served policy comes to the policy alone; writes a report and plots."""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bench import plots
from bench.machine import fingerprint
from bench.measure import FULL, QUICK, ceilings, measure
from bench.policies import random_archive
from bench.report import Report, markdown, missed, write
from vla_runtime.spec import Precision


@dataclass(frozen=True)
class Options:
    """What to measure, and where the report goes."""

    # Archives to measure; by default that of `make export`, and the random ones.
    archives: tyro.conf.Positional[tuple[Path, ...]] = ()
    # Policies of random weights to make and measure where no archive is named: of CLIP ViT-B/32's size, or of
    # 3 billion parameters, for a GPU.
    random: tuple[Literal["clip_b32", "clip_3b"], ...] = ("clip_b32",)
    # Precision of the random ones.
    precision: Precision = "float32"
    # Folder of the report; archives that are made on the fly are kept in its folder `policies`.
    output: Path = Path("runs/bench")
    # Under a minute on a tiny policy of random weights: tests that the benchmark works, no figures to quote.
    quick: bool = False
    # Exit with status 1 when a target is missed.
    check: bool = False


def main() -> int:
    """Measure and report: 0, or 1 where a target was to be checked and is missed."""
    options = tyro.cli(
        Annotated[Options, tyro.conf.OmitArgPrefixes], prog="python -m bench", description=__doc__
    )
    began = time.monotonic()
    depth = QUICK if options.quick else FULL
    machine = fingerprint()
    archives = options.archives or _default_archives(options)
    with tempfile.TemporaryDirectory() as folder:
        _say("load generator and front end, without a policy")
        limits = ceilings(Path(folder), depth)
    results = [measure(archive, depth, _say) for archive in archives]
    report = Report(machine, limits, results, fingerprint()["load_average"], time.monotonic() - began)
    write(report, options.output)
    plots.draw(report, options.output)
    print(markdown(report))
    _say(f"{options.output}/report.md, report.json and plots, after {report.took_s:.0f} s")
    return int(options.check and bool(missed(report)))


def _default_archives(options: Options) -> tuple[Path, ...]:
    made = options.output / "policies"
    made.mkdir(parents=True, exist_ok=True)
    if options.quick:
        return (random_archive(made, "clip_tiny", "float32"),)
    served = Path("model_store/vla.mar")
    if not served.is_file():
        sys.exit(f"error: no archive at {served}: make one with `make export`, or name others")
    return served, *(random_archive(made, name, options.precision) for name in options.random)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
