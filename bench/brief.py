"""A report of one table, with the machine that it was measured on."""

from collections.abc import Sequence
from pathlib import Path

from bench.machine import fingerprint
from loadtest import document


def report(title: str, output: Path, table: document.Table, measured: Sequence[object]) -> None:
    """Print the table and write it as `output.md`, `.html`, and `.json` with all that was measured."""
    machine = fingerprint()
    written = [", ".join(f"{key} {value}" for key, value in machine.items()), table]
    print(document.markdown(title, written))
    document.write(output, {"machine": machine, "measured": measured}, title, written)
