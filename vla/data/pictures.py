"""Pictures of other people's data sets: files in a folder, or bytes inside a file."""

import io
import re
from pathlib import Path

from PIL import Image

from vla.data.episodes import DataError


def listed(folder: Path, pattern: str) -> list[Path]:
    """Return a folder's pictures in the order of their numbers.

    Raises:
        DataError: there is none.
    """
    paths = sorted(folder.glob(pattern), key=natural)
    if not paths:
        raise DataError(f"{folder} has no picture {pattern}")
    return paths


def read(path: Path) -> Image.Image:
    """Read a picture's file; its pixels are decoded when they are used, and the file is not kept open."""
    try:
        return opened(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error}") from error


def opened(content: bytes, where: str) -> Image.Image:
    """Take bytes for a picture; its pixels are decoded when they are used.

    Raises:
        DataError: they are none; the message begins with `where`.
    """
    try:
        return Image.open(io.BytesIO(content))
    except OSError as error:
        raise DataError(f"{where}: a picture can't be read: {error}") from error


def natural(path: Path | str) -> list[tuple[int, str]]:
    """Sort numbers in names by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]
