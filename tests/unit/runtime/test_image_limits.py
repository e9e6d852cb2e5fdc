"""Pictures before a pixel is decoded: raw pixels, and what would cost too much."""

import io
import math
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vla_runtime.errors import BadImage, TooLarge
from vla_runtime.images import Limits, jpeg_pixels, open_image
from vla_runtime.preprocessing import picture
from vla_runtime.spec import Camera

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
CAMERA = Camera(name="front", width=96, height=96)
RAW = {"shape": [6, 8, 3], "dtype": "uint8", "data": PIXELS.tobytes()}


def test_raw_pixels_arrive_as_they_are() -> None:
    camera = Camera(name="front", width=8, height=6, resize="none")

    seen = picture(open_image(RAW, "image", Limits()), camera)

    np.testing.assert_array_equal(seen, PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float32"}, "raw pixels must be uint8 RGB: shape [height, width, 3]"),
        ({"shape": [6, 8, 4]}, "raw pixels must be uint8 RGB: shape [height, width, 3]"),
        ({"shape": [6, 8]}, "raw pixels need the shape [height, width, 3]"),
        ({"shape": [-6, -8, 3]}, "raw pixels need the shape [height, width, 3]"),
        ({"shape": [True, 144, 3]}, "raw pixels need the shape [height, width, 3]"),
        ({"shape": [7, 8, 3]}, "raw pixels of 7 x 8 x 3 need 168 bytes, got 144"),
        ({"data": "AAAA"}, "raw pixels need exactly shape, dtype and data, the bytes, in MessagePack"),
        ({"more": 1}, "raw pixels need exactly shape, dtype and data, the bytes, in MessagePack"),
    ],
)
def test_raw_pixels_that_contradict_themselves_are_refused(change: dict, message: str) -> None:
    with pytest.raises(BadImage) as caught:
        open_image({**RAW, **change}, "image", Limits())

    assert (caught.value.status, caught.value.field, caught.value.message) == (400, "image", message)


def jpeg(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def with_scans(data: bytes, more: int) -> bytes:
    """Repeat the first scan of a progressive JPEG, which a decoder then reads again and again."""
    begin = data.index(b"\xff\xda")
    end = begin + 2
    while not (data[end] == 0xFF and data[end + 1] not in (0x00, 0xFF)):
        end += 1
    return data[:end] + data[begin:end] * more + data[end:]


def test_a_bomb_of_scans_is_refused_in_no_time() -> None:
    bomb = with_scans(jpeg(1600, 1200, progressive=True), 400)
    started = time.perf_counter()

    with pytest.raises(TooLarge) as caught:
        open_image(bomb, "image.front", Limits())

    assert time.perf_counter() - started < 0.1
    assert (caught.value.status, caught.value.field) == (413, "image.front")
    assert caught.value.message == "a JPEG of 21 scans or more; at most 20 are decoded"


def test_an_ordinary_progressive_picture_is_taken() -> None:
    image = open_image(jpeg(64, 48, progressive=True), "image", Limits())

    assert picture(image, Camera(name="a", width=32, height=32)).shape == (3, 32, 32)


def damaged(data: bytes, seed: int) -> bytes:
    """Return a JPEG with 5 random bytes among its compressed pixels."""
    random, spoilt = np.random.default_rng(seed), bytearray(data)
    for place in random.integers(data.index(b"\xff\xda") + 14, len(data) - 2, 5):
        spoilt[place] = random.integers(256)
    return bytes(spoilt)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_damaged_pixels_are_refused_where_the_decoder_notices(mode: str) -> None:
    data = jpeg(320, 240, mode, quality=90)
    refused = []
    for seed in range(60):
        spoilt = damaged(data, seed)
        open_image(spoilt, "image", Limits(allow_damaged=True))
        try:
            picture(open_image(spoilt, "image.front", Limits()), CAMERA, "image.front")
        except BadImage as error:
            refused.append(error.message)
    picture(open_image(data, "image", Limits()), CAMERA)

    assert len(refused) >= 30
    assert all(message.startswith("the picture is damaged: ") for message in refused)


@pytest.mark.parametrize(("mode", "direct"), [("RGB", True), ("L", True), ("CMYK", False)])
def test_cmyk_is_left_to_pillow(mode: str, direct: bool) -> None:  # noqa: FBT001
    image = open_image(jpeg(32, 24, mode), "image", Limits())
    allowed = open_image(jpeg(32, 24, mode), "image", Limits(allow_damaged=True))

    assert (jpeg_pixels(image, 1, "image") is not None) is direct
    assert jpeg_pixels(allowed, 1, "image") is None


@pytest.mark.parametrize("edge", [240, 120, 100, 60, 30])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_pixels_are_pillows_at_every_scale(edge: int, options: dict) -> None:
    """The strict decoder gives the same pixels as Pillow, which training uses on files."""
    data = jpeg(333, 251, quality=85, **options)
    camera = Camera(name="front", width=edge, height=edge)

    strict = picture(open_image(data, "image", Limits()), camera)
    pillows = picture(Image.open(io.BytesIO(data)), camera)

    np.testing.assert_array_equal(strict, pillows)


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"subsampling": 0},
        {"optimize": True},
        {"restart_marker_blocks": 4},
        {"quality": 30},
    ],
)
def test_sound_pictures_are_taken(options: dict) -> None:
    for mode in ("RGB", "L", "CMYK"):
        file = io.BytesIO()
        Image.effect_noise((70, 50), 60).convert("RGB").convert(mode).save(file, "JPEG", **options)
        picture(open_image(file.getvalue(), "image", Limits()), CAMERA)


@pytest.mark.parametrize("most", [4_000_000, 63])
def test_the_limit_on_pixels_is_the_operators(most: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (2500, 1800)).save(file, "PNG")

    with pytest.raises(TooLarge) as caught:
        open_image(file.getvalue(), "image", Limits(max_pixels=most))

    assert caught.value.message == f"2500 x 1800 pixels; at most {most / 1e6:g} million pixels are taken"
    assert open_image(file.getvalue(), "image", Limits(max_pixels=4_500_000)).size == (2500, 1800)


@pytest.mark.parametrize("name", ["max_pixels", "max_scans"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True])
def test_a_limit_that_is_none_is_refused(name: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^handler\.{name} must be a whole number of 1 at least, got {value!r}$"
    ):
        Limits(**{name: value})


@pytest.mark.parametrize("name", ["max_decode_ms", "batch_decode_ms", "apart_decode_ms"])
@pytest.mark.parametrize("value", [0, -1.0, "4", True, math.inf, math.nan])
def test_a_time_that_is_none_is_refused(name: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^handler\.{name} must be a positive number of milliseconds, got "
    ):
        Limits(**{name: value})
