"""Is this archive the one that was meant? Loading an archive runs its code, so it is asked before."""

import hashlib
import re
from pathlib import Path

from archive.errors import ArchiveError


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_digest(archive: Path, sha256: str | None = None) -> str:
    """Compare an archive's SHA-256 with the expected one, and return it.

    Args:
        archive: the archive
        sha256: the expected digest; None reads the first word of `<archive>.sha256`, as `sha256sum` writes it

    Raises:
        ArchiveError: the archive or its digest is missing, or they differ.
    """
    beside = archive.with_name(archive.name + ".sha256")
    if sha256 is None:
        if not beside.is_file():
            raise ArchiveError(f"no digest for {archive}: give --sha256, or `sha256sum {archive} > {beside}`")
        sha256 = (beside.read_text().split() or [""])[0]
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ArchiveError(
            f"the SHA-256 of an archive has 64 hexadecimal digits in lower case, got {sha256!r}"
        )
    if not archive.is_file():
        raise ArchiveError(f"no archive at {archive}")
    if (found := digest(archive)) != sha256:
        raise ArchiveError(f"{archive} has SHA-256 {found}, expected {sha256}: not loaded")
    return found
