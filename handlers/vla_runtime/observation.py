"""One request's fields, checked: a row to an `Observation`, or a `RequestError` that names the field.

A row maps the wire's field names to values as multipart, JSON or MessagePack deliver them: an image is
bytes, base64 text, or raw pixels `{shape: [H, W, 3], dtype: "uint8", data: bytes}`; everything else is a JSON
value, or its text. A policy with a history of n steps takes n states and n pictures a camera, the oldest in
`image.<camera>.0`.
"""

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from PIL import Image

from vla_runtime.errors import InvalidValue, MissingField, TooLarge, UnknownField
from vla_runtime.images import Limits, open_image
from vla_runtime.preprocessing import cost_ms
from vla_runtime.spec import Dimension, DiscreteSpace, PolicySpec, Vector

Row = Mapping[str, object]
# n pictures a camera, oldest first.
Pictures = tuple[tuple[Image.Image, ...], ...]

# Longest command [characters].
MAX_COMMAND = 512
MAX_SEED = 2**63 - 1
# Longest deadline [ms]: a day.
MAX_DEADLINE_MS = 86_400_000
# A measured value may leave its bounds by this share of their range: beyond that its unit is wrong.
STATE_MARGIN = 0.5
# Longest JSON text of a form's field [bytes].
MAX_TEXT = 16_384
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Observation:
    """What a robot sees, is told and measures."""

    # n pictures a camera, oldest first, in the spec's order of cameras; headers read, pixels not decoded yet.
    images: Pictures
    # The field that each picture came in, for errors found while decoding it.
    fields: tuple[tuple[str, ...], ...]
    # 1 to 512 characters; empty for a policy without a command.
    command: str
    # float32 [n, S], physical units, oldest first.
    state: np.ndarray
    # float32 [A], physical units: the action that the robot does last before this chunk; NaN when not sent.
    previous: np.ndarray
    # float32 [delay, A], physical units: what the robot executes before the answer is there.
    prefix: np.ndarray
    # Noise of a stochastic policy is drawn from it, so that equal requests get equal answers.
    seed: int
    # When the answer becomes worthless [s since the epoch]; infinity for never.
    deadline_s: float
    # What decoding its pictures costs [nominal ms of one core].
    cost_ms: float


def decode(row: Row, spec: PolicySpec, arrived_s: float, limits: Limits | None = None) -> Observation:
    """Check one request's fields.

    Args:
        row: the fields
        spec: which fields the policy takes
        arrived_s: when the request came [s since the epoch]; its deadline counts from then
        limits: what decoding a picture may cost

    Raises:
        RequestError: a field is missing, unknown, malformed, too large or out of range.
    """
    _refuse_unknown(row, spec)
    taken = limits or Limits()
    fields = tuple(_image_fields(row, camera.name, spec) for camera in spec.cameras)
    images = tuple(tuple(open_image(row[field], field, taken) for field in steps) for steps in fields)
    previous, prefix = _previous(row, spec)
    return Observation(
        images=images,
        fields=fields,
        command=_command(row) if spec.tokenizer else "",
        state=_state(row, spec),
        previous=previous,
        prefix=prefix,
        seed=_seed(row),
        deadline_s=_deadline(row, arrived_s),
        cost_ms=sum(_costs(images, fields, spec, taken)),
    )


def image_fields(camera: str, spec: PolicySpec) -> tuple[str, ...]:
    """Return the fields that a camera's pictures come in: one, or one a step, oldest first."""
    name = f"image.{camera}"
    return (name,) if spec.history == 1 else tuple(f"{name}.{step}" for step in range(spec.history))


def _refuse_unknown(row: Row, spec: PolicySpec) -> None:
    images = [field for camera in spec.cameras for field in image_fields(camera.name, spec)]
    short = [field.replace(f"image.{spec.cameras[0].name}", "image", 1) for field in images]
    short = short if len(spec.cameras) == 1 else []
    known = [*(short or images), *(["command"] if spec.tokenizer else []), *(["state"] if spec.state else [])]
    known += [] if isinstance(spec.action, DiscreteSpace) else ["previous"]
    known += ["delay"] if spec.max_delay else []
    known += ["seed", "deadline_ms"]
    for name in row:
        if name not in known and name not in images:
            raise UnknownField(name[:64], f"this policy takes no such field; it takes: {', '.join(known)}")


def _image_fields(row: Row, camera: str, spec: PolicySpec) -> tuple[str, ...]:
    return tuple(_image_field(row, field, camera, spec) for field in image_fields(camera, spec))


def _image_field(row: Row, field: str, camera: str, spec: PolicySpec) -> str:
    """Return the field of a camera's picture; a camera that is alone may be left out of its name."""
    short = field.replace(f"image.{camera}", "image", 1)
    if len(spec.cameras) > 1 or (field in row and short not in row):
        short = field
    elif field in row:
        raise UnknownField(short, f"sent beside {field!r}; send one of them")
    if short not in row:
        raise MissingField(short, f"needs the picture of camera {camera!r} as JPEG, PNG or WebP")
    return short


def _costs(
    images: Pictures, fields: tuple[tuple[str, ...], ...], spec: PolicySpec, limits: Limits
) -> Iterator[float]:
    """Yield what decoding each picture costs [nominal ms]."""
    for camera, steps, names in zip(spec.cameras, images, fields, strict=True):
        for image, field in zip(steps, names, strict=True):
            cost = cost_ms(image, camera)
            if cost > limits.max_decode_ms:
                most = f"at most {limits.max_decode_ms:g} are spent on one picture"
                raise TooLarge(
                    field, f"decoding it costs {cost:.0f} ms, {most}: send fewer pixels, or a baseline JPEG"
                )
            yield cost


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
    if len(value) > MAX_COMMAND:
        raise InvalidValue("command", f"must have 1 to {MAX_COMMAND} characters, got {len(value)}")
    if not any(_visible(letter) for letter in value):
        raise InvalidValue("command", f"must have 1 to {MAX_COMMAND} characters, got none that can be seen")
    if any(unicodedata.category(letter) == "Cs" for letter in value):
        raise InvalidValue("command", "is not UTF-8 text: it holds half of a surrogate pair")
    return value


def _visible(letter: str) -> bool:
    """Whether a character says anything: no space, control, format or unassigned one."""
    return unicodedata.category(letter)[0] not in "ZC"


def _state(row: Row, spec: PolicySpec) -> np.ndarray:
    if spec.state is None:
        return np.zeros((spec.history, 0), np.float32)
    names, steps = spec.state.names, spec.history
    expected = f"a JSON array of {len(names)} numbers: {', '.join(names)}"
    if steps > 1:
        expected = f"a JSON array of {steps} states, oldest first, each {expected}"
    if row.get("state") is None:
        raise MissingField("state", f"needs {expected}")
    values = _json_value(row["state"], "state", expected)
    states = values if steps > 1 else [values]
    if not isinstance(states, list | tuple):
        raise InvalidValue("state", f"must be {expected}; got {_kind(states)}")
    if len(states) != steps:
        raise InvalidValue("state", f"must be {expected}; got {len(states)} states")
    for state in states:
        _check_numbers(state, spec.state, "state", expected)
    return np.asarray(states, np.float32)


def _previous(row: Row, spec: PolicySpec) -> tuple[np.ndarray, np.ndarray]:
    """Return the action done last before this chunk, [A], and those that it begins with, [delay, A].

    A table is what is left of the last answer: the first `delay` of its actions are executed meanwhile.
    """
    space, delay = spec.action, _delay(row, spec)
    unknown, nothing = np.full(space.width, np.nan, np.float32), np.zeros((0, space.width), np.float32)
    if isinstance(space, DiscreteSpace) or row.get("previous") is None:
        if delay:
            raise MissingField("previous", f"needs the {delay} actions that are executed meanwhile, or more")
        return unknown, nothing
    expected = f"a JSON array of {space.width} numbers: {', '.join(space.names)}"
    values = _json_value(row["previous"], "previous", expected)
    if not spec.max_delay or not _is_table(values):
        _check_numbers(values, space, "previous", expected)
        if delay:
            raise InvalidValue(
                "previous", f"with a delay of {delay} must be a JSON array of actions, got one"
            )
        return np.asarray(values, np.float32), nothing
    table = _actions(values, spec, expected)
    if delay > len(table):
        raise InvalidValue("delay", f"is {delay} steps, more than the {len(table)} actions of `previous`")
    return (table[delay - 1] if delay else unknown), table[:delay]


def _actions(values: list[object], spec: PolicySpec, expected: str) -> np.ndarray:
    """Return what is left of the last answer: float32 [T', A], T' at most T."""
    space = spec.action
    assert not isinstance(space, DiscreteSpace)
    if len(values) > space.horizon:
        raise InvalidValue("previous", f"must have at most {space.horizon} actions, got {len(values)}")
    for value in values:
        _check_numbers(value, space, "previous", f"a JSON array of actions, each {expected}")
    return np.asarray(values, np.float32)


def _is_table(values: object) -> TypeGuard[list[object]]:
    return isinstance(values, list | tuple) and any(isinstance(value, list | tuple) for value in values)


def _delay(row: Row, spec: PolicySpec) -> int:
    """Return how many actions are executed before the answer is there [steps]."""
    expected = f"an integer from 0 to {spec.max_delay} steps"
    value = _json_value(row.get("delay", 0), "delay", expected)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= spec.max_delay:
        raise InvalidValue("delay", f"must be {expected}")
    return value


def _check_numbers(values: object, vector: Vector, field: str, expected: str) -> None:
    if not isinstance(values, list | tuple):
        raise InvalidValue(field, f"must be {expected}; got {_kind(values)}")
    if len(values) != len(vector.dimensions):
        raise InvalidValue(field, f"must be {expected}; got {len(values)} numbers")
    for dimension, value in zip(vector.dimensions, values, strict=True):
        _check_number(dimension, value, field)


def _check_number(dimension: Dimension, value: object, field: str) -> None:
    name, low, high = dimension.name, dimension.low, dimension.high
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidValue(field, f"{name} must be a number, got {_kind(value)}")
    if not abs(value) <= LARGEST_FLOAT32:  # true of NaN as well
        raise InvalidValue(field, f"{name} must be finite")
    margin = STATE_MARGIN * (high - low)
    if not low - margin <= value <= high + margin:
        limits = f"[{low:g}, {high:g}] {dimension.unit}"
        raise InvalidValue(field, f"{name} is {value:g}, far outside {limits}: is the unit right?")


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
    if len(value) > MAX_TEXT:
        raise InvalidValue(field, f"must be {expected}; got {len(value)} bytes of text")
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidValue(field, f"must be {expected}; got text that is not JSON") from error


def _kind(value: object) -> str:
    kinds = {type(None): "null", bool: "a boolean", dict: "an object", list: "an array", str: "text"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "bytes")
