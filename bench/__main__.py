"""`python -m bench`: how close the served policy comes to the policy alone; writes a report and plots."""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bench import plots
from bench.machine import fingerprint
from bench.measure import FULL, QUICK, ceilings, measure
from bench.policies import clip_b32, random_archive
from bench.report import Report, markdown, missed, write

TINY = {"text_width": 32, "text_layers": 1, "text_heads": 2, "text_inner": 64} | {
    "vision_width": 32,
    "vision_layers": 1,
    "vision_heads": 2,
    "vision_inner": 64,
    "patch": 16,
    "width": 32,
}


@dataclass(frozen=True)
class Options:
    """What to measure, and where the report goes."""

    # Archives to measure. By default that of `make export` and, made on the fly, one of CLIP ViT-B/32's size
    # with random weights, named clip_b32.
    archives: tyro.conf.Positional[tuple[Path, ...]] = ()
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
        return (random_archive(made, "clip_tiny", clip_b32() | TINY, 64),)
    served = Path("model_store/vla.mar")
    if not served.is_file():
        sys.exit(f"error: no archive at {served}: make one with `make export`, or name others")
    return served, random_archive(made, "clip_b32", clip_b32(), 224)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
