"""Turns on a device that several workers share."""

import fcntl
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TextIO

# Nobody else computes there.
ALONE: AbstractContextManager[None] = nullcontext()


class Turn:
    """`with turn:` one batch has the device for itself, among all processes that name the same file.

    A GPU that two processes use at once goes from one to the other every few milliseconds: both batches end
    late, and then both workers prepare while it has nothing to do. By turns one prepares while the other
    computes. A process that ends, however it does, gives its turn up.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; it is made where there is none."""
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> None:
        self._file = self._path.open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()
