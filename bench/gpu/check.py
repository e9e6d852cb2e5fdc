"""Check a GPU host: its tests, parity with the CPU, failures, memory, speed, robots, load over HTTP.

    python -m bench gpu                          all parts, or those that an earlier run did not finish
    python -m bench gpu --parts speed parity     these alone, anew

Needs this checkout, torch and no network. Without a GPU it runs what it can on the CPU.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import torch
import tyro

from bench.gpu.failures import failures
from bench.gpu.http import http
from bench.gpu.parity import parity
from bench.gpu.part import Findings, Run, Skipped, said
from bench.gpu.parts import memory, served, tests
from bench.gpu.pays import pays
from bench.gpu.robots import robots
from bench.gpu.speed import speed
from bench.machine import Machine, described, fingerprint
from bench.results import say
from loadtest.document import Table, markdown

Name = Literal["served", "speed", "pays", "robots", "http", "memory", "failures", "parity", "tests"]
# Each with the time that it may take [s]; it ends what it has begun.
PARTS: dict[Name, tuple[Callable[[Run], Findings], float]] = {
    "served": (served, 30),
    "speed": (speed, 120),
    "pays": (pays, 60),
    "robots": (robots, 60),
    "http": (http, 100),
    "memory": (memory, 45),
    "failures": (failures, 60),
    "parity": (parity, 150),
    "tests": (tests, 60),
}


@dataclass(frozen=True)
class Options:
    """What to check, and where the report goes."""

    # Parts to run. Default: all not yet done.
    parts: tuple[Name, ...] = ()
    # Folder of the parts' findings and of the report.
    output: Path = Path("build/gpu")
    # Share of the usual time that each part may take.
    share: float = 1.0
    # Check the CPU instead, as on a machine without a GPU.
    cpu: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and write the report: 0, or 1 where one failed."""
    options = tyro.cli(Options, prog="python -m bench gpu", description=__doc__, args=arguments)
    device = "cuda:0" if torch.cuda.is_available() and not options.cpu else "cpu"
    if device == "cpu":
        say("no GPU that torch can use: what needs none is checked on the CPU")
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Findings] = {}
    for name in PARTS:
        file = options.output / f"{name}.json"
        if name in options.parts or not (options.parts or file.is_file()):
            file.write_bytes(msgspec.json.encode(_run(name, options, device)))
        with contextlib.suppress(
            FileNotFoundError, msgspec.ValidationError
        ):  # of another version of this code
            found[name] = msgspec.json.decode(file.read_bytes(), type=Findings)
    machine = fingerprint(device)
    (options.output / "report.md").write_text(report(machine, found))
    written = msgspec.json.encode({"machine": machine, "parts": found})
    (options.output / "report.json").write_bytes(msgspec.json.format(written) + b"\n")
    say(f"wrote {options.output}/report.md and report.json")
    return int(not all(part.ok for part in found.values()))


def report(machine: Machine, found: Mapping[str, Findings]) -> str:
    """Return the report for people: how every part ended, and what it says."""
    rows = [
        (name, part.skipped or ("ok" if part.ok else "**failed**"), f"{part.took_s:.0f}")
        for name, part in found.items()
    ]
    parts = [f"## {name.capitalize()}\n\n{part.report}" for name, part in found.items() if part.report]
    table = Table(("part", "result", "took [s]"), rows)
    return markdown(f"GPU check: {machine['accelerator'] or 'CPU'}", [described(machine), table, *parts])


def _run(name: Name, options: Options, device: str) -> Findings:
    check, budget_s = PARTS[name]
    say(f"--- {name} (at most about {budget_s:g} s)")
    began = time.monotonic()
    run = Run(device, began + options.share * budget_s, options.output, lambda line: say(f"    {line}"))
    try:
        found = check(run)
    except Skipped as skipped:
        found = Findings(ok=True, skipped=str(skipped))
    except Exception as error:  # one part must not cost the others
        found = Findings(ok=False, report=said(error))
    found = msgspec.structs.replace(found, took_s=time.monotonic() - began)
    say(f"--- {name}: {found.skipped or ('ok' if found.ok else 'FAILED')} after {found.took_s:.1f} s")
    return found
