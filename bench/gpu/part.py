"""What every part of the check gets and gives."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtest.document import Block, markdown


class Skipped(RuntimeError):
    """A part can't be checked here; says why. It is no failure."""


@dataclass(frozen=True)
class Run:
    """Where the parts run, how long they may take, and where they say what they do."""

    device: str
    # When a part is to stop taking up new work [s, monotonic].
    until_s: float
    # Where plots go.
    folder: Path
    say: Callable[[str], None]

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU at all."""
        return self.device != "cpu"

    @property
    def spent(self) -> bool:
        """Whether the part's time is over."""
        return time.monotonic() > self.until_s

    def need_gpu(self) -> None:
        """Skip the part on the CPU.

        Raises:
            Skipped: there is no GPU.
        """
        if not self.on_gpu:
            raise Skipped("needs a GPU")


class Findings(msgspec.Struct, frozen=True):
    """What a part found, kept in a file of its own, so that another run may do the rest."""

    # Whether all that was checked is as it should be.
    ok: bool
    # For people, as Markdown; what went wrong, where it could not be checked at all.
    report: str = ""
    # The figures, as JSON holds them.
    figures: object = None
    # Why nothing was checked.
    skipped: str = ""
    # How long it took [s].
    took_s: float = 0.0

    @classmethod
    def of(cls, blocks: Sequence[Block], figures: object, *, ok: bool) -> "Findings":
        """Lay a report out."""
        return cls(ok, markdown("", blocks), figures)


def said(error: Exception) -> str:
    """Return an error as a report shows it."""
    return f"{type(error).__name__}: {str(error)[:300]}"
