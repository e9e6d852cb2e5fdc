"""The archives of one TorchServe process: opened, told apart by name, and room for them unpacked."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from archive.errors import ArchiveError
from archive.read import STARTUP_TIMEOUT_S, Archive


def opened(paths: Sequence[Path]) -> tuple[Archive, ...]:
    """Open archives, each of which is served under a name of its own.

    Raises:
        ArchiveError: one is no archive, or two have one name.
    """
    archives = tuple(Archive.open(path) for path in paths)
    for index, archive in enumerate(archives):
        for other in archives[:index]:
            if other.name == archive.name or other.path.name == archive.path.name:
                raise ArchiveError(
                    f"{archive.path} and {other.path} are both called {archive.name!r}: export one under "
                    "another file name, which is its name in the URL"
                )
    return archives


def longest_start_s(archives: Sequence[Archive]) -> float:
    """Return how long archives may take together to be loaded [s]: large or slow ones one after the other."""
    more = sum(archive.startup_timeout_s - STARTUP_TIMEOUT_S for archive in archives)
    return STARTUP_TIMEOUT_S + max(0.0, more)


def require_room(archives: Sequence[Archive]) -> None:
    """Check that archives can be unpacked where TorchServe does it, in the folder for temporary files.

    Raises:
        ArchiveError: there is not enough room.
    """
    folder = Path(tempfile.gettempdir())
    need, free = sum(archive.unpacked_bytes for archive in archives), shutil.disk_usage(folder).free
    if need > free:
        names = " and ".join(archive.path.name for archive in archives)
        raise ArchiveError(
            f"{names} need {need / 1e6:.0f} MB unpacked, and {folder} has {free / 1e6:.0f} MB free: mount a "
            "larger volume there, or name a folder with more room by TMPDIR"
        )
