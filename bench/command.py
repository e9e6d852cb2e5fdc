"""How close the served policy comes to the policy alone; writes a report with plots.

Instead of it, `python -m bench gpu` checks a GPU host, `compare` compares architectures, `compress` what
makes a policy smaller, `formats` the formats of an archive, `overlap` one worker and two on a device that
sleeps.
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from bench import results
from bench.machine import fingerprint
from bench.measure import FULL, QUICK, ceilings, measure
from bench.policies import Name, random_archive
from bench.report import Report, blocks, missed
from bench.results import say
from loadtest.extra import needed
from vla_runtime.spec import Precision

# Packages of the peers, which processes of their own import.
PEERS = ("fastapi", "uvicorn", "mosec")


@dataclass(frozen=True)
class Options:
    """What to measure, and where the report goes."""

    # Archives to measure; by default that of `make export`, and the random ones.
    archives: tyro.conf.Positional[tuple[Path, ...]] = ()
    # Policies of random weights to make and measure where no archive is named: of CLIP ViT-B/32's size, or of
    # 3 billion parameters, for a GPU.
    random: tuple[Name, ...] = ("clip_b32",)
    # Precision of the random ones.
    precision: Precision = "float32"
    # Folder of the report; archives that are made on the fly are kept in its folder `policies`.
    output: Path = Path("runs/bench")
    # Under a minute on a small policy of random weights: tests that the benchmark works, no figures to quote.
    quick: bool = False
    # Compare with FastAPI and mosec around the same policy instead, which `make .venv/.peers` installs.
    peers: bool = False
    # Exit with status 1 when a target is missed.
    check: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report: 0, or 1 where a target was to be checked and is missed."""
    options = tyro.cli(Options, prog="python -m bench", description=__doc__, args=arguments)
    if options.peers:
        return _compare(options)
    began = time.monotonic()
    depth = QUICK if options.quick else FULL
    machine = fingerprint()
    if missing := [str(archive) for archive in options.archives if not archive.is_file()]:
        sys.exit(f"error: no archive at {', '.join(missing)}")
    archives = options.archives or _default_archives(options)
    with tempfile.TemporaryDirectory() as folder:
        say("load generator and front end, without a policy")
        limits = ceilings(Path(folder), depth)
    measured = [measure(archive, depth) for archive in archives]
    report = Report(limits, measured, time.monotonic() - began)
    results.write("Benchmark", options.output / "report", machine, report, list(blocks(report)))
    return int(options.check and bool(missed(report)))


def _compare(options: Options) -> int:
    """Compare the first archive's server with its peers."""
    with needed("peers", *PEERS):
        from bench.peers.compare import blocks as compared  # noqa: PLC0415
        from bench.peers.compare import compare  # noqa: PLC0415
    (archive, *_) = options.archives or _default_archives(dataclasses.replace(options, random=()))
    turns, seconds = (1, 0.5) if options.quick else (3, 3.0)
    machine = fingerprint()
    found = compare(archive, turns=turns, seconds=seconds)
    results.write("Peers", options.output / "peers", machine, found, list(compared(found)))
    return 0


def _default_archives(options: Options) -> tuple[Path, ...]:
    made = options.output / "policies"
    made.mkdir(parents=True, exist_ok=True)
    if options.quick:
        return (random_archive(made, "tiny", "float32"),)
    served = Path("model_store/vla.mar")
    if not served.is_file():
        sys.exit(f"error: no archive at {served}: make one with `make export`, or name others")
    return served, *(random_archive(made, name, options.precision) for name in options.random)
