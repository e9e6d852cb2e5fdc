"""A picture's structure costs nothing: what would keep a library busy is refused before it reads it."""

import io
import struct
import zlib

import pytest
from PIL import Image

from vla_runtime.containers import check_container, riff_chunks
from vla_runtime.errors import BadImage, RequestError, TooLarge
from vla_runtime.images import Limits, open_image


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (3, 4, 5)).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def riff_chunk(name: bytes, data: bytes = b"") -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


JPEG, PNG, WEBP = encoded("JPEG"), encoded("PNG"), encoded("WEBP")
EXIF = b"MM\0*\0\0\0\x08" + struct.pack(">H", 6000) + b"\x10\0\0\3\0\0\0\1\0\1\0\0" * 6000 + bytes(4)
PROFILE = b"p\0\0" + zlib.compress(bytes(1_000_000), 9)
TABLE = b"\xff\xdb\x00\x43\x00" + b"\x01" * 64


def jpeg(head: bytes) -> bytes:
    return JPEG[:2] + head + JPEG[2:]


def png(early: bytes = b"", late: bytes = b"") -> bytes:
    return PNG[:33] + early + PNG[33:-12] + late + PNG[-12:]


def webp(more: bytes) -> bytes:
    return riff(riff_chunk(b"VP8X", bytes([8, 0, 0, 0, 63, 0, 0, 47, 0, 0])) + WEBP[12:] + more)


SEGMENTS = "a JPEG of more than 128 segments beside its scans, or 65536 bytes of tables"
CHUNKS = "a PNG of more than 64 chunks without pixels, or 4 compressed ones"


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (jpeg(b"\xff\xfe\0\2" * 129), TooLarge, SEGMENTS),
        (jpeg(b"\xff\xe1\0\x08Exif\0\0" * 129), TooLarge, SEGMENTS),
        (jpeg(b"\xff\xd8" * 129), TooLarge, SEGMENTS),
        (jpeg(TABLE * 1000), TooLarge, SEGMENTS),
        (jpeg((b"\xff\xc4" + struct.pack(">H", 60_000) + bytes(59_998)) * 2), TooLarge, SEGMENTS),
        (jpeg(b"\xff" * 100), BadImage, "a JPEG with 100 stray bytes between its segments"),
        (jpeg(b"\x01" * 100), BadImage, "a JPEG with 100 stray bytes between its segments"),
        (png(chunk(b"teSt") * 65), TooLarge, CHUNKS),
        (png(late=chunk(b"tEXt", b"a\0b") * 65), TooLarge, CHUNKS),
        (png(chunk(b"iCCP", PROFILE) * 5), TooLarge, CHUNKS),
        (png(late=chunk(b"zTXt", PROFILE) * 5), TooLarge, CHUNKS),
        (png(late=chunk(b"iTXt", b"k\0\1\0\0\0" + PROFILE) * 5), TooLarge, CHUNKS),
        (png(chunk(b"IDAT") * (4096 - 2)), TooLarge, "a picture of more than 4096 chunks"),
        (png(chunk(b"eXIf", EXIF)), TooLarge, f"{len(EXIF)} bytes of EXIF; at most 65536 are read"),
        (webp(riff_chunk(b"abcd") * 4096), TooLarge, "a picture of more than 4096 chunks"),
        (webp(riff_chunk(b"EXIF", EXIF)), TooLarge, f"{len(EXIF)} bytes of EXIF; at most 65536 are read"),
    ],
)
def test_a_structure_without_end_is_refused(data: bytes, kind: type[RequestError], message: str) -> None:
    with pytest.raises(kind) as caught:
        check_container(data, "image.front", 20)

    assert (caught.value.field, caught.value.message) == ("image.front", message)


@pytest.mark.parametrize(
    "data",
    [
        jpeg(b"\xff\xfe\0\2" * 100),
        jpeg(b"\xff" * 60),  # filling before a marker is allowed
        jpeg(b"\x01" * 60),
        jpeg(b"\xff\xe2\xff\xff" + bytes(65_533)),  # one large segment
        png(chunk(b"iCCP", PROFILE) + chunk(b"tEXt", b"a\0b") * 50),
        png(chunk(b"teSt") * 60 + chunk(b"iTXt") * 4),
        png(chunk(b"IDAT") * (4096 - 3)),
        png(late=b"\0" * 40),
        webp(riff_chunk(b"EXIF", EXIF[:60_000]) + riff_chunk(b"odd ", b"x")),
        JPEG + b"\xff\xfe\0\2" * 1000,  # after the end nobody reads
        PNG + chunk(b"teSt") * 1000,
        encoded("JPEG", progressive=True),
        encoded("JPEG", exif=Image.Exif()),
        b"nothing known",
    ],
)
def test_what_cameras_and_editors_write_is_taken(data: bytes) -> None:
    check_container(data, "image", 20)


def test_chunks_of_odd_length_are_followed_by_a_byte() -> None:
    body = riff_chunk(b"odd ", b"xyz") + riff_chunk(b"even", b"ab") + riff_chunk(b"last", b"q")

    assert list(riff_chunks(riff(body))) == [(b"odd ", 3), (b"even", 2), (b"last", 1)]


def test_a_picture_that_holds_further_ones_is_as_strict_as_any_jpeg() -> None:
    """Pillow calls it MPO, which is no reason to skip a check."""
    file, picture = io.BytesIO(), Image.effect_noise((64, 48), 60).convert("RGB")
    picture.save(file, "MPO", save_all=True, append_images=[picture], progressive=True)
    data = file.getvalue()
    begin = data.index(b"\xff\xda")
    end = data.index(b"\xff", begin + 14)
    while data[end + 1] == 0:
        end = data.index(b"\xff", end + 2)

    assert open_image(data, "image", Limits()).format == "MPO"
    with pytest.raises(TooLarge, match=r"^a JPEG of 21 scans or more; at most 20 are decoded$"):
        open_image(data[:end] + data[begin:end] * 30 + data[end:], "image", Limits())
