"""`python -m fuzz`: hostile input for some minutes; a finding is printed with a file that shows it again."""

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from archive.read import unpack
from fuzz.run import Report, case, examine, fuzz, keep
from fuzz.target import Target
from fuzz.targets import load


@dataclass(frozen=True)
class Options:
    """Tries hostile input on what decodes it and on a server; exits with 1 when anything fails."""

    # Archive whose policy reads the input, and is served.
    archive: Path = Path("model_store/vla.mar")
    # How long, all targets together [minutes].
    minutes: float = 3.0
    # Equal seeds give equal inputs.
    seed: int = 0
    # Targets to try; all of them by default: pictures, json, msgpack, http, commands, spec, server.
    only: tuple[str, ...] = ()
    # Where findings are written.
    output: Path = Path("build/fuzz")
    # A file of an earlier run to try again, alone.
    again: Path | None = None


def main() -> int:
    """Return 1 when there was a finding."""
    options = tyro.cli(Options)
    with tempfile.TemporaryDirectory() as made:
        folder = unpack(options.archive, Path(made))
        targets = load(folder)
        if options.again is not None:
            return _again(options.again, targets[options.again.name.partition("-")[0]])
        names = options.only or tuple(targets)
        reports = []
        for name in names:
            report = fuzz(partial(load, folder), name, options.seed, options.minutes * 60 / len(names))
            _say(report)
            for finding in report.findings:
                path = keep(finding, case(targets[name], options.seed, finding.index), options.output)
                print(f"  {finding.kind}: python -m fuzz --again {path}", flush=True)
            reports.append(report)
    found = sum(len(report.findings) for report in reports)
    print(f"{sum(report.inputs for report in reports)} inputs, {found} findings, seed {options.seed}")
    return int(found > 0)


def _say(report: Report) -> None:
    outcomes = ", ".join(f"{name} {count}" for name, count in report.outcomes.most_common())
    took = f"{report.seconds:.0f} s, the slowest {report.slowest_s:.3f} s of a core"
    print(f"{report.target}: {report.inputs} inputs in {took}: {outcomes}", flush=True)


def _again(path: Path, target: Target) -> int:
    report = Report(path.name)
    examine(target, path.read_bytes(), 0, report)
    for finding in report.findings:
        print(finding.kind, finding.detail, sep="\n")
    print(dict(report.outcomes))
    return int(bool(report.findings))


if __name__ == "__main__":
    sys.exit(main())
