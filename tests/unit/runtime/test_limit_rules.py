"""Which limits a spec may declare: one value a dimension, of what is known, and nothing that leads away."""

from typing import Any

import pytest
from action_spaces import QUATERNION, space, spec

from vla_runtime.errors import SpecError
from vla_runtime.limits import Safety, check_limits
from vla_runtime.spec import Dimension, Rotation, Statistics

LIMITS = ("max_step", "position_limits", "max_from_state", "hold_action")


def dimension(name: str, **fields: Any) -> Dimension:
    return Dimension(**{"name": name, "unit": "m", "low": -1.0, "high": 1.0} | fields)


DELTA = dimension("dx", meaning="delta", state="x")
SPEED = dimension("vx", meaning="velocity", state="x")
POSE = dimension("px", meaning="absolute", state="x")
BLIND = dimension("bx", meaning="delta")
PLAIN = dimension("ox", state="x")


def given(name: str, value: object) -> dict[str, Any]:
    return {name: value}


def check(dimensions: tuple[Dimension, ...], **safety: Any) -> None:
    check_limits(space(dimensions=dimensions, normalisation="identity"), Safety(**safety), confident=False)


def refused(message: str, dimensions: tuple[Dimension, ...], **safety: Any) -> None:
    with pytest.raises(SpecError, match=f"^{message}$"):
        check(dimensions, **safety)


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_limit_has_one_value_a_dimension(name: str, count: int) -> None:
    message = rf"safety\.{name} has {count} values for the action \('dx', 'vx'\)"
    refused(message, (DELTA, SPEED), **given(name, (None,) * count))
    check((DELTA, SPEED), **given(name, (None,) * 2))


@pytest.mark.parametrize("name", ["max_step", "max_from_state"])
@pytest.mark.parametrize("value", [0.0, -0.5])
def test_a_step_or_a_distance_is_positive(name: str, value: float) -> None:
    message = rf"safety\.{name} of vx must be positive, got {value}"
    refused(message, (DELTA, SPEED), **given(name, (None, value)))
    check((DELTA, SPEED), **given(name, (0.01, 0.5)))


@pytest.mark.parametrize("pair", [(0.5, 0.5), (0.5, -0.5)])
def test_a_box_has_an_inside(pair: tuple[float, float]) -> None:
    low, high = pair
    message = rf"safety\.position_limits of vx needs low < high, got \({low}, {high}\)"
    refused(message, (DELTA, SPEED), position_limits=(None, pair))
    check((DELTA, SPEED), position_limits=(None, (-0.5, 0.25)))


@pytest.mark.parametrize("name", ["max_step", "max_from_state", "position_limits"])
def test_a_part_of_a_rotation_has_no_limit_of_its_own(name: str) -> None:
    turning = space(names=QUATERNION, rotations=(Rotation(kind="quaternion", dimensions=QUATERNION),))
    value = (0.1, 0.2) if name == "position_limits" else 0.1
    message = rf"^safety\.{name} limits qy, a part of a rotation, which would no longer be one$"
    with pytest.raises(SpecError, match=message):
        check_limits(turning, Safety(**given(name, (None,) * 3 + (value, None, None))), confident=False)
    check_limits(turning, Safety(max_step=(0.1, None, None, None, None, None)), confident=False)


@pytest.mark.parametrize(
    ("name", "value", "meanings"),
    [
        ("position_limits", (-0.5, 0.5), "delta, velocity"),
        ("max_from_state", 0.5, "delta, velocity, absolute"),
    ],
)
def test_where_something_leads_is_known_only_of_what_is_measured(
    name: str, value: object, meanings: str
) -> None:
    needs = rf"needs a dimension of the state in `state` and one of the meanings {meanings}, got"
    refused(rf"safety\.{name} of bx {needs} None and 'delta'", (BLIND, DELTA), **given(name, (value, None)))
    refused(rf"safety\.{name} of ox {needs} 'x' and None", (PLAIN, DELTA), **given(name, (value, None)))
    for moving in (DELTA, SPEED):
        check((moving, BLIND), **given(name, (value, None)))


def test_a_pose_is_limited_by_its_bounds_and_may_stay_near_the_state() -> None:
    check((POSE, DELTA), max_from_state=(0.5, None))
    refused(r"safety\.position_limits of px .*", (POSE, DELTA), position_limits=((-0.5, 0.5), None))


@pytest.mark.parametrize(("name", "value"), [("position_limits", (-0.5, 0.5)), ("max_from_state", 0.5)])
def test_holding_leads_nowhere_where_that_is_limited(name: str, value: object) -> None:
    message = rf"safety\.hold_action of {{}} must be null: safety\.{name} limits where it leads"
    refused(message.format("dx"), (DELTA, BLIND), hold_action=(0.1, 0.0), **given(name, (value, None)))
    for still in (0.0, None):
        check((DELTA, SPEED), hold_action=(still, 0.1), **given(name, (value, None)))
    if name == "max_from_state":
        refused(message.format("px"), (POSE, BLIND), hold_action=(0.0, 0.0), max_from_state=(0.5, None))
        check((POSE, BLIND), hold_action=(None, 0.0), max_from_state=(0.5, None))


@pytest.mark.parametrize(
    ("safety", "asked"),
    [
        ({"mode": "hold"}, "mode 'hold'"),
        ({"mode": "hold", "min_confidence": 0.5}, "mode 'hold'"),
        ({"min_confidence": 0.5}, "min_confidence"),
        ({"min_confidence": 0.5, "hold_action": (None, 0.0)}, "min_confidence"),
        ({"hold_action": (None, 0.0)}, "hold_action"),
    ],
)
def test_what_is_held_must_be_known(safety: dict[str, Any], asked: str) -> None:
    plain = space(dimensions=(dimension("a"), dimension("b")), normalisation="identity")
    message = rf"^safety\.{asked} needs a safety\.hold_action for a, which says neither "
    with pytest.raises(SpecError, match=message):
        check_limits(plain, Safety(**safety), confident=True)
    check_limits(plain, Safety(**safety | given("hold_action", (0.5, 0.0))), confident=True)
    measured = space(dimensions=(PLAIN, dimension("b")), normalisation="identity")
    check_limits(measured, Safety(**safety | given("hold_action", (None, 0.0))), confident=True)


def test_nothing_needs_to_be_known_where_nothing_is_held() -> None:
    check((dimension("a"), dimension("b")), mode="clamp")
    check((dimension("a"), dimension("b")), mode="reject")


@pytest.mark.parametrize("meaning", ["delta", "velocity"])
def test_standing_still_is_zero_and_must_be_allowed(meaning: str) -> None:
    moving = dimension("v", meaning=meaning, low=0.1, high=0.9)
    message = r"safety\.hold_action holds v at 0\.0, outside its bounds 0\.1 and 0\.9 m"
    refused(message, (moving, DELTA), mode="hold")
    # Another hold, inside the bounds, is the owner's choice; zero may be at the edge.
    check((moving, DELTA), hold_action=(0.1, 0.0))
    check((moving, DELTA), hold_action=(0.9, 0.0))
    check((dimension("v", meaning=meaning, low=0.0, high=0.5), DELTA), mode="hold")


@pytest.mark.parametrize("held", [-1.5, 1.5])
@pytest.mark.parametrize("moving", [DELTA, SPEED, POSE, PLAIN])
def test_a_declared_hold_is_inside_the_bounds(moving: Dimension, held: float) -> None:
    message = rf"safety\.hold_action holds {moving.name} at {held}, outside its bounds -1\.0 and 1\.0 m"
    refused(message, (moving, BLIND), hold_action=(held, 0.0))


@pytest.mark.parametrize(("norm", "good"), [(1.0005, True), (1.005, False), (0.995, False)])
def test_a_held_rotation_is_one_to_a_thousandth(norm: float, good: bool) -> None:  # noqa: FBT001
    wide = tuple(Dimension(name=name, unit="1", low=-1.1, high=1.1) for name in QUATERNION)
    turning = space(
        dimensions=wide,
        normalisation="identity",
        statistics=Statistics(),
        rotations=(Rotation(kind="quaternion", dimensions=QUATERNION),),
    )
    safety = Safety(hold_action=(0.0, 0.0, 0.0, norm))
    if good:
        check_limits(turning, safety, confident=False)
    else:
        with pytest.raises(SpecError, match=r"^safety\.hold_action .* holds a rotation that is none$"):
            check_limits(turning, safety, confident=False)


def test_what_keeps_its_value_is_a_dimension() -> None:
    check((DELTA, SPEED), hold_action=(0.0, 0.0), hold_keeps=("vx",))
    message = r"safety\.hold_keeps names grip, hand; the action has dx, vx"
    refused(message, (DELTA, SPEED), hold_action=(0.0, 0.0), hold_keeps=("grip", "vx", "hand"))


def test_limits_are_clamped_to_unless_something_else_is_asked_for() -> None:
    assert Safety() == Safety(
        mode="clamp",
        max_step=None,
        position_limits=None,
        max_from_state=None,
        hold_action=None,
        min_confidence=None,
        hold_keeps=(),
    )
    with pytest.raises(AttributeError):
        Safety().mode = "reject"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_confidence_that_the_artifact_does_not_return_limits_nothing() -> None:
    safety = Safety(min_confidence=0.5, hold_action=(0.0, 0.0))
    assert spec(space(), safety, outputs=("actions", "confidence")).safety == safety
    with pytest.raises(SpecError, match=r"^safety\.min_confidence needs an artifact that returns 'conf"):
        spec(space(), safety)
