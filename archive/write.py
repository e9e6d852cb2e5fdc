"""Files to a zip file: equal inputs give equal bytes."""

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

# The earliest time that a zip file can state: an archive must not depend on when it was made.
EPOCH = (1980, 1, 1, 0, 0, 0)
# Larger files are stored as they are [bytes]: weights hardly shrink, and take a minute a gigabyte to try.
STORED_FROM = 32 << 20
# Read and written at a time [bytes].
PIECE = 4 << 20


def pack(contents: Mapping[str, bytes | Path], target: Path) -> None:
    """Pack bytes and files, by their name in the archive, into `target`, atomically, file by file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(contents.items()):
            _add(archive, name, data)
    partial.replace(target)


def _add(archive: zipfile.ZipFile, name: str, data: bytes | Path) -> None:
    member = zipfile.ZipInfo(name, EPOCH)
    member.compress_type = zipfile.ZIP_DEFLATED
    if isinstance(data, bytes):
        archive.writestr(member, data, zipfile.ZIP_DEFLATED)
        return
    size = member.file_size = data.stat().st_size
    if size > STORED_FROM:
        member.compress_type = zipfile.ZIP_STORED
    with data.open("rb") as source, archive.open(member, "w", force_zip64=size > 1 << 31) as packed:
        shutil.copyfileobj(source, packed, PIECE)
