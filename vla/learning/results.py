"""Results of a comparison that goes on where it was interrupted: a line of JSON each, in the run's folder."""

from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from vla.training.progress import plain
from vla_runtime.errors import SpecError

SETTINGS, RESULTS = "settings.json", "results.jsonl"
# Settings that a run may go on without sharing.
FREE = ("out", "resume", "threads", "seeds", "arms")
R = TypeVar("R")


class Results(Generic[R]):
    """What a run has found so far."""

    def __init__(self, out: Path, settings: Any, kind: type[R], *, resume: bool) -> None:
        """Begin a run, or go on with it.

        Args:
            out: its folder
            settings: a dataclass; all but `FREE` must be the same to go on
            kind: of a result, a dataclass
            resume: go on

        Raises:
            SpecError: the folder has a run already, or none to go on with, or one of other settings.
        """
        self._path = out / RESULTS
        mine = {name: value for name, value in plain(settings).items() if name not in FREE}
        file = out / SETTINGS
        if not resume:
            if file.exists():
                raise SpecError(
                    f"{out} holds a run already: go on with it by --resume, or name another --out"
                )
            out.mkdir(parents=True, exist_ok=True)
            file.write_bytes(msgspec.json.format(msgspec.json.encode(mine), indent=2) + b"\n")
        elif not file.is_file():
            raise SpecError(f"{out} holds no run to go on with")
        found = msgspec.json.decode(file.read_bytes())
        if other := [name for name in mine if found.get(name) != mine[name]]:
            raise SpecError(f"{out} was run with another {', '.join(other)}: it can't be resumed with these")
        lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        self.all: list[R] = [msgspec.json.decode(line, type=kind) for line in lines]

    def add(self, result: R) -> None:
        """Keep a result."""
        self.all.append(result)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(result) + b"\n")
