"""Writes what was measured, with the machine that it was measured on."""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.machine import Machine, described
from loadtest import document, host
from loadtest.document import Block


def write(title: str, output: Path, machine: Machine, measured: object, blocks: Sequence[Block]) -> None:
    """Print the report, and write it as `output.md`, `.html`, and `.json` with all that was measured."""
    machine = {**machine, "load_average_after": host.describe()["load_average"]}
    written = [described(machine), *blocks]
    print(document.markdown(title, written))
    for path in document.write(output, {"machine": machine, "measured": measured}, title, written):
        say(f"wrote {path}")


def say(line: str) -> None:
    """Say what is being done, beside the report."""
    print(line, file=sys.stderr, flush=True)
