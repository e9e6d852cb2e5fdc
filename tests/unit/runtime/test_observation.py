"""A request's fields: what is taken, and the exact refusal of what is not."""

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from vla_runtime.errors import InvalidValue, RequestError
from vla_runtime.observation import decode
from vla_runtime.spec import Camera, Dimension, PolicySpec, Statistics, Vector

NOW_S = 1000.0


def png(width: int = 8, height: int = 8, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, kind)
    return file.getvalue()


PNG = png()
GOOD: Mapping[str, object] = {"image": PNG, "command": b"push the red block", "state": b"[0.1, 1]"}
STATE = "a JSON array of 2 numbers: height, gripper"
ACTION = "a JSON array of 2 numbers: delta_x, gripper"
DEADLINE = "must be a positive number of milliseconds, at most 86400000"
SEED = "must be an integer from 0 to 9223372036854775807"


@pytest.fixture(scope="module")
def spec(tiny_folder: Path) -> PolicySpec:
    return PolicySpec.load(tiny_folder)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"command": bytearray(b"push the red block")},
        {"command": "push the red block"},
        {"image": bytearray(PNG)},
        {"image": base64.b64encode(PNG).decode()},
        {"image": png(kind="WEBP")},
        {"state": [0.1, 1]},
        {"state": "[0.1, 1.0]"},
        {"seed": b"0", "deadline_ms": b"50.5"},
    ],
)
def test_every_form_of_a_field_gives_the_same_observation(
    spec: PolicySpec, fields: dict[str, object]
) -> None:
    observation = decode({**GOOD, **fields}, spec, NOW_S)

    assert observation.command == "push the red block"
    assert observation.state.dtype == np.float32
    assert observation.state.tolist() == [[np.float32(0.1), 1.0]]
    assert observation.images[0][0].size == (8, 8)
    assert observation.seed == 0
    assert observation.deadline_s == (NOW_S + 0.0505 if "deadline_ms" in fields else math.inf)


def test_a_command_may_have_512_characters(spec: PolicySpec) -> None:
    assert decode({**GOOD, "command": "\u00fc" * 512}, spec, NOW_S).command == "\u00fc" * 512


REFUSALS = [
    (
        {"image": None},
        400,
        "missing_field",
        "image",
        "needs the picture of camera 'front' as JPEG, PNG or WebP",
    ),
    ({"image": b""}, 400, "bad_image", "image", "is empty"),
    ({"image": b"no picture"}, 400, "bad_image", "image", "not a JPEG, PNG or WebP picture"),
    ({"image": png(kind="GIF")}, 400, "bad_image", "image", "not a JPEG, PNG or WebP picture"),
    ({"image": "@@@"}, 400, "bad_image", "image", "text must be the picture's bytes in base64"),
    (
        {"image": [1]},
        400,
        "bad_image",
        "image",
        "must be a picture's bytes, their base64, or raw pixels in MessagePack",
    ),
    (
        {"image": png(5000, 4000)},
        413,
        "too_large",
        "image",
        "5000 x 4000 pixels; at most 4 million pixels are taken",
    ),
    ({"image.front": PNG}, 400, "unknown_field", "image", "sent beside 'image.front'; send one of them"),
    ({"command": None}, 400, "missing_field", "command", "needs a text of 1 to 512 characters"),
    (
        {"command": "  "},
        422,
        "invalid_value",
        "command",
        "must have 1 to 512 characters, got none that can be seen",
    ),
    ({"command": "x" * 513}, 422, "invalid_value", "command", "must have 1 to 512 characters, got 513"),
    ({"command": b"\xff\xfe"}, 422, "invalid_value", "command", "is not UTF-8 text"),
    ({"command": 3}, 422, "invalid_value", "command", "must be text, got a number"),
    ({"state": None}, 400, "missing_field", "state", f"needs {STATE}"),
    ({"state": [1]}, 422, "invalid_value", "state", f"must be {STATE}; got 1 numbers"),
    ({"state": b"[1,"}, 422, "invalid_value", "state", f"must be {STATE}; got text that is not JSON"),
    ({"state": {"a": 1}}, 422, "invalid_value", "state", f"must be {STATE}; got an object"),
    ({"state": [0.1, math.nan]}, 422, "invalid_value", "state", "gripper must be finite"),
    ({"state": b"[Infinity, 1]"}, 422, "invalid_value", "state", "height must be finite"),
    ({"state": [1e300, 1]}, 422, "invalid_value", "state", "height must be finite"),
    ({"state": [10**400, 1]}, 422, "invalid_value", "state", "height must be finite"),
    ({"deadline_ms": 10**400}, 422, "invalid_value", "deadline_ms", DEADLINE),
    (
        {"state": [120, 1]},
        422,
        "invalid_value",
        "state",
        "height is 120, far outside [0, 0.5] m: is the unit right?",
    ),
    ({"state": [True, 1]}, 422, "invalid_value", "state", "height must be a number, got a boolean"),
    ({"state": ["1", 1]}, 422, "invalid_value", "state", "height must be a number, got text"),
    ({"previous": [0.01]}, 422, "invalid_value", "previous", f"must be {ACTION}; got 1 numbers"),
    ({"previous": [0.01, None]}, 422, "invalid_value", "previous", "gripper must be a number, got null"),
    (
        {"previous": b"[3, 0]"},
        422,
        "invalid_value",
        "previous",
        "delta_x is 3, far outside [-0.03, 0.03] m: is the unit right?",
    ),
    ({"seed": -1}, 422, "invalid_value", "seed", SEED),
    ({"seed": 1.5}, 422, "invalid_value", "seed", SEED),
    ({"seed": True}, 422, "invalid_value", "seed", SEED),
    ({"deadline_ms": 0}, 422, "invalid_value", "deadline_ms", DEADLINE),
    (
        {"deadline_ms": b"NaN"},
        422,
        "invalid_value",
        "deadline_ms",
        DEADLINE,
    ),
    (
        {"comand": "x"},
        400,
        "unknown_field",
        "comand",
        "this policy takes no such field; it takes: image, command, state, previous, seed, deadline_ms",
    ),
]


@pytest.mark.parametrize(("fields", "status", "code", "field", "message"), REFUSALS)
def test_refusal_names_the_field(  # noqa: PLR0917
    spec: PolicySpec, fields: dict[str, object], status: int, code: str, field: str, message: str
) -> None:
    row = {name: value for name, value in {**GOOD, **fields}.items() if value is not None}

    with pytest.raises(RequestError) as caught:
        decode(row, spec, NOW_S)

    assert caught.value.status == status
    assert caught.value.body() == {"error": {"code": code, "field": field, "message": message}}


def test_several_cameras_are_named(spec: PolicySpec) -> None:
    two = msgspec.structs.replace(
        spec, cameras=(Camera(name="front", width=96, height=96), Camera(name="wrist", width=96, height=96))
    )
    row = {**GOOD, "image.front": PNG, "image.wrist": png(16, 8)}
    del row["image"]

    assert [image.size for (image,) in decode(row, two, NOW_S).images] == [(8, 8), (16, 8)]
    with pytest.raises(RequestError) as caught:
        decode(GOOD, two, NOW_S)
    assert caught.value.message.endswith(
        "takes: image.front, image.wrist, command, state, previous, seed, deadline_ms"
    )


def test_policy_without_state_takes_none(spec: PolicySpec) -> None:
    stateless = msgspec.structs.replace(spec, state=None)

    assert decode({"image": PNG, "command": "x"}, stateless, NOW_S).state.shape == (1, 0)
    with pytest.raises(RequestError) as caught:
        decode(GOOD, stateless, NOW_S)
    assert caught.value.field == "state"


@pytest.mark.parametrize(("field", "beyond"), [("state", [-0.2501, 0.7501]), ("previous", [-0.0601, 0.0601])])
def test_a_value_may_leave_its_range_by_half_of_it(spec: PolicySpec, field: str, beyond: list[float]) -> None:
    for value in beyond:
        inside = value - math.copysign(0.0002, value)
        decode({**GOOD, field: [inside, 1]}, spec, NOW_S)
        with pytest.raises(InvalidValue, match=r", far outside \["):
            decode({**GOOD, field: [value, 1]}, spec, NOW_S)


def of_x(spec: PolicySpec, low: float, high: float) -> PolicySpec:
    """Return the policy with a state of one dimension."""
    x = Dimension(name="x", unit="m", low=low, high=high)
    state = Vector(dimensions=(x,), normalisation="identity", statistics=Statistics())
    return msgspec.structs.replace(spec, state=state)


def test_the_margin_belongs_to_what_is_taken(spec: PolicySpec) -> None:
    """Bounds and margins that binary fractions hold exactly."""
    small = of_x(spec, -1.0, 3.0)
    for value in (-3.0, 5.0):
        assert decode({**GOOD, "state": [value]}, small, NOW_S).state.tolist() == [[value]]
        with pytest.raises(InvalidValue, match=r", far outside \[-1, 3\] m: is the unit right\?$"):
            decode({**GOOD, "state": [value * (1 + 1e-12)]}, small, NOW_S)


def test_the_largest_number_of_float32_is_finite(spec: PolicySpec) -> None:
    largest = float(np.finfo(np.float32).max)
    wide = of_x(spec, -largest, largest)
    for value in (largest, -largest):
        assert decode({**GOOD, "state": [value]}, wide, NOW_S).state.tolist() == [[value]]
        with pytest.raises(InvalidValue, match=r"^x must be finite$"):
            decode({**GOOD, "state": [value * 1.0001]}, wide, NOW_S)


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_a_seed_is_what_was_sent(spec: PolicySpec, seed: int) -> None:
    assert decode({**GOOD, "seed": seed}, spec, NOW_S).seed == seed
    assert decode({**GOOD, "seed": str(seed)}, spec, NOW_S).seed == seed
    with pytest.raises(InvalidValue) as caught:
        decode({**GOOD, "seed": "seven"}, spec, NOW_S)
    assert (caught.value.field, caught.value.message) == ("seed", f"{SEED}; got text that is not JSON")


@pytest.mark.parametrize(("deadline_ms", "good"), [(0.25, True), (86_400_000, True), (86_400_001, False)])
def test_a_deadline_is_within_a_day(spec: PolicySpec, deadline_ms: float, good: bool) -> None:  # noqa: FBT001
    row = {**GOOD, "deadline_ms": deadline_ms}
    if good:
        assert decode(row, spec, NOW_S).deadline_s == NOW_S + deadline_ms / 1000
    else:
        with pytest.raises(InvalidValue, match=f"^{DEADLINE}$"):
            decode(row, spec, NOW_S)
