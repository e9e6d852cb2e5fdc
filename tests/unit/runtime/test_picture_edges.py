"""Pictures at the edge of what is taken: their structure, size, scale and cost."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vla_runtime.budget import decoding_ms
from vla_runtime.containers import check_container
from vla_runtime.errors import BadImage, RequestError, TooLarge
from vla_runtime.images import Limits, open_image
from vla_runtime.preprocessing import _affine, cost_ms, decoded, picture, resized_to
from vla_runtime.spec import Camera, Resize


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def segment(marker: int, size: int = 2) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", size) + bytes(size - 2)


def jpeg(*parts: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"


COMMENT, DQT, DHT, SOS = 0xFE, 0xDB, 0xC4, 0xDA
SCAN = segment(SOS, 8) + b"pixels\xff\x00pixels"
MOST = "128 segments beside its scans, or 65536 bytes of tables"


@pytest.mark.parametrize(
    ("most", "beyond", "kind", "message"),
    [
        (
            jpeg(b"\1" * 64, segment(COMMENT)),
            jpeg(b"\1" * 65, segment(COMMENT)),
            BadImage,
            "a JPEG with 65 stray bytes between its segments",
        ),
        (
            jpeg(segment(COMMENT), b"\1" * 64, segment(COMMENT)),
            jpeg(segment(COMMENT), b"\1" * 65, segment(COMMENT)),
            BadImage,
            "a JPEG with 65 stray bytes between its segments",
        ),
        (
            jpeg(segment(COMMENT) * 128),
            jpeg(segment(COMMENT) * 129),
            TooLarge,
            f"a JPEG of more than {MOST}",
        ),
        (
            jpeg(segment(DQT, 32_768), segment(DHT, 32_768)),
            jpeg(segment(DQT, 32_768), segment(DHT, 32_769)),
            TooLarge,
            f"a JPEG of more than {MOST}",
        ),
        (
            jpeg(SCAN * 5),
            jpeg(SCAN * 6),
            TooLarge,
            "a JPEG of 6 scans or more; at most 5 are decoded",
        ),
        # Tables between scans are not counted as segments, and pixels are not stray.
        (
            jpeg((segment(DHT) + SCAN) * 5, segment(COMMENT) * 128),
            jpeg((segment(DHT) + SCAN) * 5, segment(COMMENT) * 129),
            TooLarge,
            f"a JPEG of more than {MOST}",
        ),
        (
            jpeg(segment(DQT) * 128),
            jpeg(segment(DQT) * 129),
            TooLarge,
            f"a JPEG of more than {MOST}",
        ),
    ],
)
def test_a_jpegs_structure_ends(most: bytes, beyond: bytes, kind: type[RequestError], message: str) -> None:
    check_container(most, "image", 5)
    with pytest.raises(kind) as caught:
        check_container(beyond, "image", 5)
    assert caught.value.message == message


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND")


def webp(*chunks: bytes) -> bytes:
    body = b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def riff(name: bytes, data: bytes = b"") -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


CHUNKS = "a PNG of more than 64 chunks without pixels, or 4 compressed ones"


@pytest.mark.parametrize(
    ("most", "beyond", "message"),
    [
        (png(chunk(b"tEXt") * 64), png(chunk(b"tEXt") * 65), CHUNKS),
        (png(chunk(b"iCCP") * 4), png(chunk(b"iCCP") * 5), CHUNKS),
        (png(chunk(b"zTXt") * 4), png(chunk(b"zTXt") * 5), CHUNKS),
        (png(chunk(b"iTXt") * 4), png(chunk(b"iTXt") * 5), CHUNKS),
        # Its palette and pixels are no ancillary chunks.
        (png(chunk(b"PLTE"), chunk(b"IHDR"), chunk(b"tEXt") * 64), png(chunk(b"tEXt") * 65), CHUNKS),
        (
            png(chunk(b"IDAT") * 4095),
            png(chunk(b"IDAT") * 4096),
            "a picture of more than 4096 chunks",
        ),
        (
            png(chunk(b"eXIf", bytes(65_536))),
            png(chunk(b"eXIf", bytes(65_537))),
            "65537 bytes of EXIF; at most 65536 are read",
        ),
        (
            webp(riff(b"EXIF", bytes(65_536)), riff(b"VP8 ", bytes(70_000))),
            webp(riff(b"EXIF", bytes(65_537))),
            "65537 bytes of EXIF; at most 65536 are read",
        ),
        (webp(riff(b"VP8 ") * 4096), webp(riff(b"VP8 ") * 4097), "a picture of more than 4096 chunks"),
    ],
)
def test_the_chunks_of_a_png_or_webp_end(most: bytes, beyond: bytes, message: str) -> None:
    check_container(most, "image", 5)
    with pytest.raises(TooLarge) as caught:
        check_container(beyond, "image", 5)
    assert caught.value.message == message


def test_the_limits_are_those_that_the_docs_name() -> None:
    assert Limits() == Limits(
        max_pixels=4_000_000,
        max_scans=20,
        max_decode_ms=100.0,
        batch_decode_ms=100.0,
        apart_decode_ms=15.0,
        allow_damaged=False,
    )


def test_the_least_limits_are_taken() -> None:
    limits = Limits(max_pixels=1, max_scans=1, max_decode_ms=0.5, batch_decode_ms=1, apart_decode_ms=1)

    assert open_image(encoded(noise(1, 1), "PNG"), "image", limits).size == (1, 1)


@pytest.mark.parametrize("value", ["true", 1, None])
def test_whether_damage_is_allowed_is_said_plainly(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^handler\.allow_damaged must be true or false, got {value!r}$"):
        Limits(allow_damaged=value)


def raw(height: int, width: int, **fields: Any) -> dict[str, Any]:
    return {"shape": [height, width, 3], "dtype": "uint8", "data": bytes(height * width * 3)} | fields


@pytest.mark.parametrize("height", [1, 8])
def test_as_many_pixels_as_are_allowed(height: int) -> None:
    limits = Limits(max_pixels=8 * height)
    assert open_image(raw(height, 8), "image", limits).size == (8, height)
    assert open_image(encoded(noise(8, height), "PNG"), "image", limits).size == (8, height)
    for value in (raw(height, 9), encoded(noise(9, height), "PNG")):
        with pytest.raises(TooLarge, match=rf"^9 x {height} pixels; at most "):
            open_image(value, "image", limits)


@pytest.mark.parametrize(
    "shape", [[0, 8, 3], [8, 0, 3], [8, -8, 3], [8.0, 8, 3], (8, 8, 3), [8, 8, 3, 1], None]
)
def test_raw_pixels_have_a_shape(shape: Any) -> None:
    with pytest.raises(BadImage, match=r"^raw pixels need the shape \[height, width, 3\]$"):
        open_image(raw(8, 8, shape=shape), "image", Limits())


def test_raw_pixels_come_in_any_bytes() -> None:
    pixels = bytes(range(12))
    image = open_image(raw(2, 2, data=bytearray(pixels)), "image", Limits())

    assert np.asarray(image).tobytes() == pixels


@pytest.mark.parametrize("text", ["AAA A", "AAAA\n", "AAA", "(((("])
def test_base64_is_taken_at_its_word(text: str) -> None:
    with pytest.raises(BadImage, match=r"^text must be the picture's bytes in base64$"):
        open_image(text, "image", Limits())


@pytest.mark.parametrize("value", ["", b"", bytearray()])
def test_nothing_is_no_picture(value: Any) -> None:
    with pytest.raises(BadImage, match=r"^is empty$"):
        open_image(value, "image", Limits())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_kind_comes_as_bytes_and_as_text(kind: str) -> None:
    data = encoded(noise(8, 8), kind)
    for value in (data, bytearray(data), base64.b64encode(data).decode()):
        assert open_image(value, "image", Limits()).format == kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_strict_picture_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(64, 40), "JPEG", exif=exif)
    camera = Camera(name="a", width=32, height=20, resize="stretch")

    strict = picture(open_image(data, "image", Limits()), camera)

    np.testing.assert_array_equal(strict, picture(Image.open(io.BytesIO(data)), camera))
    if orientation > 1:
        plain = picture(open_image(encoded(noise(64, 40), "JPEG"), "image", Limits()), camera)
        assert (strict != plain).any()


@pytest.mark.parametrize("size", [(320, 10), (10, 320)])
def test_a_picture_may_be_32_times_as_long_as_wide(size: tuple[int, int]) -> None:
    camera = Camera(name="a", width=8, height=8, resize="pad")
    assert picture(noise(*size), camera).shape == (3, 8, 8)
    longer = tuple(edge + 1 if edge == 320 else edge for edge in size)
    with pytest.raises(BadImage, match=r"^\d+ x \d+ pixels is too long and thin$") as caught:
        picture(noise(longer[0], longer[1]), camera)
    assert caught.value.field == "image"
    with pytest.raises(BadImage) as caught:
        decoded(Image.open(io.BytesIO(encoded(noise(64, 64), "PNG")[:400])), camera)
    assert caught.value.field == "image"


@pytest.mark.parametrize(
    ("resize", "size", "made"),
    [
        ("stretch", (100, 7), (48, 24)),
        ("none", (100, 7), (100, 7)),
        ("pad", (480, 10), (48, 1)),
        ("pad", (10, 480), (1, 24)),
        ("pad", (480, 15), (48, 1)),
        ("pad", (96, 24), (48, 12)),
        ("pad", (24, 96), (6, 24)),
        ("pad", (24, 12), (48, 24)),
        ("crop", (96, 48), (48, 24)),
        ("crop", (96, 24), (96, 24)),
        ("crop", (24, 96), (48, 192)),
        ("crop", (100, 49), (48, 24)),
        ("crop", (49, 100), (48, 97)),
        ("crop", (101, 50), (48, 24)),
    ],
)
def test_what_a_picture_is_resized_to(resize: Resize, size: tuple[int, int], made: tuple[int, int]) -> None:
    assert resized_to(size, Camera(name="a", width=48, height=24, resize=resize)) == made


def opened(width: int, height: int, kind: str = "JPEG") -> Image.Image:
    return open_image(encoded(Image.new("RGB", (width, height)), kind), "image", Limits())


SQUARE, WIDE = (
    Camera(name="a", width=24, height=24, resize="stretch"),
    Camera(name="a", width=48, height=24, resize="stretch"),
)


@pytest.mark.parametrize(
    ("camera", "size", "scale"),
    [
        *(
            (SQUARE, (24 * times, 24 * times), scale)
            for times, scale in enumerate((1, 2, 2, 4, 4, 4, 4, 8, 8), 1)
        ),
        (SQUARE, (47, 47), 1),
        (SQUARE, (12, 12), 1),
        (SQUARE, (8 * 24, 2 * 24), 2),
        (SQUARE, (2 * 24, 8 * 24), 2),
        # It may be turned upright later: each edge must do for the camera's longer one.
        (WIDE, (192, 384), 4),
        (WIDE, (384, 192), 4),
        (WIDE, (48, 48), 1),
        (Camera(name="a", width=24, height=24, resize="none"), (240, 240), 1),
        (Camera(name="a", width=24, height=24, interpolation="nearest"), (240, 240), 1),
    ],
)
def test_by_how_much_a_jpeg_is_made_smaller(camera: Camera, size: tuple[int, int], scale: int) -> None:
    made = camera.width * camera.height
    width, height = size

    assert decoded(opened(width, height), camera).size == (-(-width // scale), -(-height // scale))
    assert cost_ms(opened(width, height), camera) == decoding_ms(opened(width, height), scale, made)
    # No other kind can be decoded at a smaller scale.
    assert decoded(opened(width, height, "PNG"), camera).size == size
    assert cost_ms(opened(width, height, "PNG"), camera) == decoding_ms(opened(width, height, "PNG"), 1, made)


def test_costs_of_rarer_kinds() -> None:
    """Palette, grey with alpha, and the pictures of an animation."""
    image, pixels = noise(96, 64), 96 * 64
    rest = 8 * pixels + 500_000
    for other, channels in ((image.quantize(256), 1), (image.convert("LA"), 2)):
        data = encoded(other, "PNG")
        expected = 27 * len(data) + 2.5 * channels * pixels + rest
        assert decoding_ms(open_image(data, "image", Limits()), 1, 0) * 1e6 == pytest.approx(expected)
    data = encoded(image, "WEBP", save_all=True, append_images=[noise(96, 64).rotate(180)], duration=40)
    frames, at = 0, 12
    while at < len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        frames, at = frames + (size if name == b"ANMF" else 0), at + 8 + size + size % 2
    assert frames > 0
    expected = 90 * frames + 16 * (len(data) - frames) + 15 * pixels + rest
    assert decoding_ms(open_image(data, "image", Limits()), 1, 0) * 1e6 == pytest.approx(expected)


def test_what_serving_keeps_may_be_trained_with() -> None:
    with torch.inference_mode():
        scale, shift = _affine(((0.25,) * 3, (0.5, 0.5, 0.5)), torch.device("cpu"))
    gain = torch.ones(3, 1, 1, requires_grad=True)

    ((255 * gain) * scale - shift).sum().backward()

    assert scale.flatten().tolist() == pytest.approx([2 / 255] * 3)
    assert shift.flatten().tolist() == [0.5] * 3
    assert gain.grad is not None
    assert gain.grad.flatten().tolist() == pytest.approx([2.0] * 3)
