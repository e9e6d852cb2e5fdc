"""`python -m fuzz`: hostile input for some minutes; a finding is printed with a file that shows it again."""

import importlib.util
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import tyro

from archive.read import unpack
from fuzz.run import Report, case, examine, fuzz, keep
from fuzz.server import conform, send, target_of
from fuzz.target import Target
from fuzz.targets import load
from server.gate.gate import served

# What needs a running server: changed requests, and those that schemathesis makes of its document.
SERVER, CONTRACT = "server", "contract"


@dataclass(frozen=True)
class Options:
    """Tries hostile input on what decodes it and on a server; exits with 1 when anything fails."""

    # Archive whose policy reads the input, and is served.
    archive: Path = Path("model_store/vla.mar")
    # How long, everything together [minutes].
    minutes: float = 3.0
    # Equal seeds give equal inputs.
    seed: int = 0
    # What is tried: pictures, json, msgpack, rows, http, commands, spec, server, contract; all by default.
    only: tuple[str, ...] = ()
    # A running server, `http://127.0.0.1:8080`, a proxy for instance; one of its own by default.
    url: str = ""
    # Where findings are written.
    output: Path = Path("build/fuzz")
    # A file of an earlier run to try again, alone.
    again: Path | None = None


def main() -> int:
    """Return 1 when there was a finding."""
    options = tyro.cli(Options, prog="python -m fuzz")
    if importlib.util.find_spec("schemathesis") is None and CONTRACT in (options.only or (CONTRACT,)):
        sys.exit("error: schemathesis is not installed: run `make fuzz`, or leave it out by --only")
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = unpack(options.archive, Path(made))
        targets = load(folder)
        names = options.only or (*targets, SERVER, CONTRACT)
        if options.again is not None:
            names = (options.again.name.partition("-")[0],)
        port = urlsplit(options.url).port if options.url else None
        if port is None and {SERVER, CONTRACT} & set(names):
            _, port = stack.enter_context(served(options.archive))
        if options.again is not None:
            return _again(options.again, _target(names[0], targets, port or 0))
        return int(sum(_run(name, targets, folder, port or 0, options) for name in names) > 0)


def _run(name: str, targets: dict[str, Target], folder: Path, port: int, options: Options) -> int:
    """Try one thing for its part of the time, print what came of it, and return the number of findings."""
    duration_s = options.minutes * 60 / len(options.only or (*targets, SERVER, CONTRACT))
    if name == CONTRACT:
        log = options.output / "contract.log"
        status = conform(f"http://127.0.0.1:{port}", options.seed, duration_s, log)
        print(f"{name}: schemathesis ended with {status}, see {log}", flush=True)
        print(*log.read_text().splitlines()[-8 if status == 0 else -200 :], sep="\n", flush=True)
        return status
    if name == SERVER:
        report = send(_target(name, targets, port), options.seed, duration_s)
    else:
        report = fuzz(partial(load, folder), name, options.seed, duration_s)
    outcomes = ", ".join(f"{outcome} {count}" for outcome, count in report.outcomes.most_common())
    took = f"{report.seconds:.0f} s, the slowest {report.slowest_s:.3f} s of a core"
    print(f"{name}: {report.inputs} inputs in {took}, seed {options.seed}: {outcomes}", flush=True)
    for finding in report.findings:
        path = keep(finding, case(_target(name, targets, port), options.seed, finding.index), options.output)
        print(f"  {finding.kind}: python -m fuzz --again {path}", flush=True)
    return len(report.findings)


def _target(name: str, targets: dict[str, Target], port: int) -> Target:
    """Return a target by name; a server's inputs are those of `http`."""
    return target_of(targets["http"], port) if name == SERVER else targets[name]


def _again(path: Path, target: Target) -> int:
    report = Report(path.name)
    examine(target, path.read_bytes(), 0, report)
    for finding in report.findings:
        print(finding.kind, finding.detail, sep="\n")
    print(dict(report.outcomes))
    return int(bool(report.findings))


if __name__ == "__main__":
    sys.exit(main())
