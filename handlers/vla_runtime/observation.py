"""One request's fields, checked: a row to an `Observation`, or a `RequestError` that names the field.

A row maps the wire's field names to values as multipart or JSON deliver them: an image is bytes, or base64
text; everything else is a JSON value, or its text.
"""

import base64
import binascii
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vla_runtime.errors import BadImage, InvalidValue, MissingField, TooLarge, UnknownField
from vla_runtime.spec import Dimension, PolicySpec

Row = Mapping[str, object]

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
# Largest picture [pixels]: 16 MP is beyond any robot's camera and decodes into 48 MB.
MAX_PIXELS = 16_000_000
# Longest command [characters].
MAX_COMMAND = 512
MAX_SEED = 2**63 - 1
# Longest deadline [ms]: a day.
MAX_DEADLINE_MS = 86_400_000
# A measured value may leave its bounds by this share of their range: beyond that its unit is wrong.
STATE_MARGIN = 0.5
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

# `_image` has a limit of its own, checked before any pixel is decoded; Pillow's would only warn.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Observation:
    """What a robot sees, is told and measures."""

    # One picture a camera, in the spec's order; headers read, pixels not decoded yet.
    images: tuple[Image.Image, ...]
    # The field that each picture came in, for errors found while decoding it.
    fields: tuple[str, ...]
    # 1 to 512 characters.
    command: str
    # float32 [S], physical units.
    state: np.ndarray
    # Noise of a stochastic policy is drawn from it, so that equal requests get equal answers.
    seed: int
    # When the answer becomes worthless [s since the epoch]; infinity for never.
    deadline_s: float


def decode(row: Row, spec: PolicySpec, arrived_s: float) -> Observation:
    """Check one request's fields.

    Args:
        row: the fields
        spec: which fields the policy takes
        arrived_s: when the request came [s since the epoch]; its deadline counts from then

    Raises:
        RequestError: a field is missing, unknown, malformed, too large or out of range.
    """
    _refuse_unknown(row, spec)
    fields = tuple(_image_field(row, camera.name, spec) for camera in spec.cameras)
    return Observation(
        images=tuple(_image(row, field) for field in fields),
        fields=fields,
        command=_command(row),
        state=_state(row, spec),
        seed=_seed(row),
        deadline_s=_deadline(row, arrived_s),
    )


def _refuse_unknown(row: Row, spec: PolicySpec) -> None:
    images = [f"image.{camera.name}" for camera in spec.cameras]
    known = ["image"] if len(images) == 1 else images
    known += ["command", *(["state"] if spec.state else []), "seed", "deadline_ms"]
    for name in row:
        if name not in known and name not in images:
            raise UnknownField(name[:64], f"this policy takes no such field; it takes: {', '.join(known)}")


def _image_field(row: Row, camera: str, spec: PolicySpec) -> str:
    """Return the field of a camera's picture; one that is alone may be named `image` for short."""
    field = f"image.{camera}"
    if len(spec.cameras) > 1 or (field in row and "image" not in row):
        short = field
    elif field in row:
        raise UnknownField("image", f"sent beside {field!r}; send one of them")
    else:
        short = "image"
    if short not in row:
        raise MissingField(short, f"needs the picture of camera {camera!r} as JPEG, PNG or WebP")
    return short


def _image(row: Row, field: str) -> Image.Image:
    data = _image_bytes(row[field], field)
    try:
        picture = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except Exception as error:  # damaged headers raise many types
        raise BadImage(field, "not a JPEG, PNG or WebP picture") from error
    if picture.width * picture.height > MAX_PIXELS:
        size = f"{picture.width} x {picture.height} pixels"
        raise TooLarge(field, f"{size}; at most {MAX_PIXELS // 10**6} million pixels are taken")
    return picture


def _image_bytes(value: object, field: str) -> bytes:
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadImage(field, "text must be the picture's bytes in base64") from error
    if not isinstance(value, bytes | bytearray):
        raise BadImage(field, f"must be a picture's bytes, or their base64 in JSON; got {_kind(value)}")
    if not value:
        raise BadImage(field, "is empty")
    return bytes(value)


def _command(row: Row) -> str:
    value = row.get("command")
    if value is None:
        raise MissingField("command", f"needs a text of 1 to {MAX_COMMAND} characters")
    if isinstance(value, bytes | bytearray):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise InvalidValue("command", "is not UTF-8 text") from error
    if not isinstance(value, str):
        raise InvalidValue("command", f"must be text, got {_kind(value)}")
    if not value.strip() or len(value) > MAX_COMMAND:
        length = len(value) if value.strip() else 0
        raise InvalidValue("command", f"must have 1 to {MAX_COMMAND} characters, got {length}")
    return value


def _state(row: Row, spec: PolicySpec) -> np.ndarray:
    if spec.state is None:
        return np.zeros(0, np.float32)
    names = spec.state.names
    expected = f"a JSON array of {len(names)} numbers: {', '.join(names)}"
    if row.get("state") is None:
        raise MissingField("state", f"needs {expected}")
    values = _json_value(row["state"], "state", expected)
    if not isinstance(values, list | tuple):
        raise InvalidValue("state", f"must be {expected}; got {_kind(values)}")
    if len(values) != len(names):
        raise InvalidValue("state", f"must be {expected}; got {len(values)} numbers")
    for dimension, value in zip(spec.state.dimensions, values, strict=True):
        _check_measured(dimension, value)
    return np.asarray(values, np.float32)


def _check_measured(dimension: Dimension, value: object) -> None:
    name, low, high = dimension.name, dimension.low, dimension.high
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidValue("state", f"{name} must be a number, got {_kind(value)}")
    if not abs(value) <= LARGEST_FLOAT32:  # true of NaN as well
        raise InvalidValue("state", f"{name} must be finite")
    margin = STATE_MARGIN * (high - low)
    if not low - margin <= value <= high + margin:
        limits = f"[{low:g}, {high:g}] {dimension.unit}"
        raise InvalidValue("state", f"{name} is {value:g}, far outside {limits}: is the unit right?")


def _seed(row: Row) -> int:
    expected = f"an integer from 0 to {MAX_SEED}"
    value = _json_value(row.get("seed", 0), "seed", expected)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
        raise InvalidValue("seed", f"must be {expected}")
    return value


def _deadline(row: Row, arrived_s: float) -> float:
    if row.get("deadline_ms") is None:
        return math.inf
    expected = f"a positive number of milliseconds, at most {MAX_DEADLINE_MS}"
    value = _json_value(row["deadline_ms"], "deadline_ms", expected)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_DEADLINE_MS:
        raise InvalidValue("deadline_ms", f"must be {expected}")
    return arrived_s + value / 1000


def _json_value(value: object, field: str, expected: str) -> object:
    """Return a field's value; a form field's text is read as JSON."""
    if not isinstance(value, str | bytes | bytearray):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidValue(field, f"must be {expected}; got text that is not JSON") from error


def _kind(value: object) -> str:
    kinds = {type(None): "null", bool: "a boolean", dict: "an object", list: "an array", str: "text"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "bytes")
