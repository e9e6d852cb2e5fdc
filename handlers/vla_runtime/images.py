"""A picture's bytes to an opened picture, its cost known from its headers before any pixel is decoded."""

import base64
import binascii
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image
from simplejpeg import decode_jpeg

from vla_runtime.containers import check_container
from vla_runtime.errors import BadImage, TooLarge

FORMATS = ("JPEG", "PNG", "WEBP")
RAW = "raw pixels"
# Modes of a JPEG that is decoded once, warnings included; another (CMYK) is decoded by Pillow.
DIRECT = ("RGB", "L")
# Where an opened picture says whether damage is refused.
STRICT = "vla_runtime.strict"
# The tag of EXIF.
ORIENTATION = 0x0112

# `Limits` has a limit of its own, checked before any pixel is decoded; Pillow's would only warn.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Limits:
    """What decoding one picture may cost: set in the archive's `model-config.yaml`, under `handler`."""

    # Largest picture [pixels]: more than a robot's camera gives, and little enough not to delay neighbours.
    max_pixels: int = 4_000_000
    # Most scans of a JPEG: encoders write 1, or 10 to 18 where it is progressive. Each costs a pass over all
    # pixels, and 31 bytes are enough for one.
    max_scans: int = 20
    # Most that decoding one picture may cost [nominal ms of one core, see `budget.py`].
    max_decode_ms: float = 100.0
    # How long a batch's decoding may take, all its threads at work [nominal ms], once for each picture of a
    # request. Whoever asks for more than its part of it gets it only where others leave it.
    batch_decode_ms: float = 100.0
    # A request that costs more is decoded beside the batches, where the gate makes those: it comes later, and
    # delays nobody [nominal ms].
    apart_decode_ms: float = 15.0
    # Whether a JPEG whose pixels are damaged is taken, as far as the decoder notices.
    allow_damaged: bool = False

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_scans"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"handler.{name} must be a whole number of 1 at least, got {value!r}")
        for name in ("max_decode_ms", "batch_decode_ms", "apart_decode_ms"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(f"handler.{name} must be a positive number of milliseconds, got {value!r}")
        if not isinstance(self.allow_damaged, bool):
            raise ValueError(f"handler.allow_damaged must be true or false, got {self.allow_damaged!r}")


def open_image(value: object, field: str, limits: Limits) -> Image.Image:
    """Read a picture's headers, or take raw pixels, and make sure that it can be decoded.

    Args:
        value: JPEG, PNG or WebP bytes, their base64, or `{shape: [H, W, 3], dtype: "uint8", data: bytes}`
        field: the request's field, for the error
        limits: what decoding it may cost

    Raises:
        BadImage: it is no picture.
        TooLarge: decoding it would cost too much.
    """
    if isinstance(value, dict):
        return _raw(value, field, limits)
    data = _bytes(value, field)
    check_container(data, field, limits.max_scans)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # damaged headers raise many types
        raise BadImage(field, "not a JPEG, PNG or WebP picture") from error
    _check_pixels(image.width, image.height, field, limits)
    image.info[STRICT] = is_jpeg(image) and not limits.allow_damaged
    return image


def is_jpeg(image: Image.Image) -> bool:
    """Whether an opened picture is a JPEG; one that holds further pictures is an MPO to Pillow."""
    return image.format in ("JPEG", "MPO")


def jpeg_pixels(image: Image.Image, scale: int, field: str) -> Image.Image | None:
    """Decode an opened JPEG into RGB at 1/`scale` of its size, and heed the decoder's warnings of damage.

    The pixels are Pillow's, bit for bit, which keeps the warnings to itself.

    Returns:
        the picture, as it lies in the file; None for one that is left to Pillow: CMYK, or damage is allowed

    Raises:
        BadImage: the pixels are damaged.
    """
    file: object = getattr(image, "fp", None)
    if not image.info.get(STRICT) or not isinstance(file, io.BytesIO):
        return None
    if image.mode not in DIRECT:
        _check_damage(file.getvalue(), field)
        return None
    width, height = (-(-edge // scale) for edge in image.size)
    try:
        pixels = decode_jpeg(file.getbuffer(), "RGB", min_height=height, min_width=width, strict=True)
    except ValueError as error:
        raise BadImage(field, f"the picture is damaged: {error}") from error
    rgb = Image.fromarray(pixels)
    if orientation := image.getexif().get(ORIENTATION):
        rgb.getexif()[ORIENTATION] = orientation
    return rgb


def _raw(value: Mapping[object, object], field: str, limits: Limits) -> Image.Image:
    shape, data = value.get("shape"), value.get("data")
    if set(value) != {"shape", "dtype", "data"} or not isinstance(data, bytes | bytearray):
        raise BadImage(field, f"{RAW} need exactly shape, dtype and data, the bytes, in MessagePack")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise BadImage(field, f"{RAW} need the shape [height, width, 3]")
    height, width, channels = shape
    if value.get("dtype") != "uint8" or channels != 3:
        raise BadImage(field, f"{RAW} must be uint8 RGB: shape [height, width, 3]")
    _check_pixels(width, height, field, limits)
    needed = height * width * 3
    if len(data) != needed:
        raise BadImage(field, f"{RAW} of {height} x {width} x 3 need {needed} bytes, got {len(data)}")
    return Image.frombytes("RGB", (width, height), bytes(data))


def _bytes(value: object, field: str) -> bytes:
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadImage(field, "text must be the picture's bytes in base64") from error
    if not isinstance(value, bytes | bytearray):
        raise BadImage(field, "must be a picture's bytes, their base64, or raw pixels in MessagePack")
    if not value:
        raise BadImage(field, "is empty")
    return bytes(value)


def _check_pixels(width: int, height: int, field: str, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        most = f"{limits.max_pixels / 1e6:g} million pixels are taken"
        raise TooLarge(field, f"{width} x {height} pixels; at most {most}")


def _check_damage(data: bytes, field: str) -> None:
    """Decode at 1/8 scale to hear the decoder's warnings, which Pillow keeps to itself."""
    try:
        decode_jpeg(data, "GRAY", fastdct=True, fastupsample=True, min_height=1, min_width=1, strict=True)
    except ValueError as error:
        raise BadImage(field, f"the picture is damaged: {error}") from error
