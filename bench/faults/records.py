"""Results as files, a JSON each, with the machine that they were measured on."""

import os
from pathlib import Path

import msgspec

from bench.machine import Machine, fingerprint


def measured_on() -> Machine:
    """Return the machine and the date; all its cores, whichever of them this process may use now."""
    return fingerprint() | {"cores": os.cpu_count()}


def file_of(folder: Path, kind: str, name: str) -> Path:
    """Return where the result of one fault or attack lies."""
    return folder / f"{kind}-{''.join(letter if letter.isalnum() else '-' for letter in name.lower())}.json"


def keep(result: object, file: Path) -> None:
    """Write a result."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(result)))
