"""What a picture's file holds beside its pixels, bounded before a library walks through it.

Libraries read segments and chunks one by one, some in Python, some inflating them: 4 MB of empty ones took
0.3 to 3 s. The structure is walked here first, as far as its bounds.
"""

import re
import struct
from collections.abc import Iterator

from vla_runtime.errors import BadImage, TooLarge

# Most segments of a JPEG beside its scans: cameras write fewer than 20, an ICC profile in pieces some more.
MAX_SEGMENTS = 128
# Most bytes of quantisation and Huffman tables; encoders need some 100 a scan.
MAX_TABLES = 65_536
# Most stray or filling bytes between two segments.
MAX_GAP = 64
# Most chunks of a PNG or WebP, and most of a PNG's without pixels; encoders write 8 KiB a chunk and more.
MAX_CHUNKS = 4096
MAX_ANCILLARY = 64
# Most compressed ones (a colour profile, texts): each may inflate to 1 MB.
MAX_COMPRESSED = 4
# Most bytes of EXIF, which a JPEG's segment can't exceed either.
MAX_EXIF = 65_536

# A marker that is no restart marker: within compressed pixels each 0xFF is followed by 0, or is one of those.
# It begins with one byte, which `re` finds fast: filling bytes before it are passed over, at no cost.
MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
SOS, EOI, DHT, DQT = 0xDA, 0xD9, 0xC4, 0xDB
# Markers without a length and contents: TEM, SOI.
ALONE = (0x01, 0xD8)


def check_container(data: bytes, field: str, max_scans: int) -> None:
    """Make sure that a picture's headers are soon read; a file of no known kind passes.

    Raises:
        BadImage: a JPEG's segments lie too far apart.
        TooLarge: too many segments, scans or chunks, or too large ones.
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data, field, max_scans)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data, field)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_webp(data, field)


def _check_jpeg(data: bytes, field: str, max_scans: int) -> None:
    segments = scans = tables = 0
    for marker, size, gap in _segments(data):
        if gap > MAX_GAP:
            raise BadImage(field, f"a JPEG with {gap} stray bytes between its segments")
        scans += marker == SOS
        segments += marker not in (SOS, DHT)  # progressive scans bring tables of their own
        tables += size if marker in (DHT, DQT) else 0
        if scans > max_scans:
            raise TooLarge(field, f"a JPEG of {scans} scans or more; at most {max_scans} are decoded")
        if segments > MAX_SEGMENTS or tables > MAX_TABLES:
            most = f"{MAX_SEGMENTS} segments beside its scans, or {MAX_TABLES} bytes of tables"
            raise TooLarge(field, f"a JPEG of more than {most}")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield a JPEG's segments: marker, length [bytes], and how many stray bytes come before it."""
    at, in_scan = 2, False
    while found := MARKER.search(data, at):
        marker = found[1][0]
        if marker == EOI:
            return
        gap = 0 if in_scan else found.end() - 2 - at
        at = found.end()
        size = 0 if marker in ALONE else max(2, int.from_bytes(data[at : at + 2], "big"))
        at, in_scan = at + size, marker == SOS
        yield marker, size, gap


def _check_png(data: bytes, field: str) -> None:
    ancillary = compressed = 0
    for index, (name, size) in enumerate(_png_chunks(data)):
        ancillary += name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND")
        compressed += name in (b"iCCP", b"zTXt", b"iTXt")
        _check_chunk(index, size if name == b"eXIf" else 0, field)
        if ancillary > MAX_ANCILLARY or compressed > MAX_COMPRESSED:
            most = f"{MAX_ANCILLARY} chunks without pixels, or {MAX_COMPRESSED} compressed ones"
            raise TooLarge(field, f"a PNG of more than {most}")
        if name == b"IEND":
            return


def _check_webp(data: bytes, field: str) -> None:
    for index, (name, size) in enumerate(riff_chunks(data)):
        _check_chunk(index, size if name == b"EXIF" else 0, field)


def _check_chunk(index: int, exif: int, field: str) -> None:
    if index >= MAX_CHUNKS:
        raise TooLarge(field, f"a picture of more than {MAX_CHUNKS} chunks")
    if exif > MAX_EXIF:
        raise TooLarge(field, f"{exif} bytes of EXIF; at most {MAX_EXIF} are read")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield names and lengths [bytes]; a checksum follows each chunk."""
    at = 8
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        yield name, size
        at += 12 + size


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the names and lengths [bytes] of a WebP's chunks, each of which begins at an even place."""
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        yield name, size
        at += 8 + size + size % 2
