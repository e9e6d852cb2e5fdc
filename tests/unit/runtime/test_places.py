"""Limits on where a chunk leads: a workspace box, joint limits, a distance from the reported state."""

import msgspec
import numpy as np
import pytest
from action_spaces import space, spec

from vla_runtime.errors import SpecError, UnsafeAction
from vla_runtime.safety import TOLERANCE, Robot, SafetyReport, enforce
from vla_runtime.spec import Dimension, Safety, Statistics, Vector

DELTA = Dimension(name="dx", unit="m", low=-0.1, high=0.1, meaning="delta", state="x")
SPEED = Dimension(name="vy", unit="m/s", low=-1, high=1, meaning="velocity", state="y")
POSE = Dimension(name="z", unit="m", low=-1, high=1, meaning="absolute", state="z")
MOVES = space(dimensions=(DELTA, SPEED), normalisation="identity")  # 10 Hz
NOTHING = np.full(2, np.nan, np.float32)
BOX = Safety(position_limits=((-0.5, 0.5), (0.0, 0.3)))


def limited(
    actions: list[list[float]], here: list[float], safety: Safety, previous: np.ndarray = NOTHING
) -> tuple[np.ndarray, SafetyReport]:
    robot = Robot(np.array(here, np.float32), previous)
    return enforce(np.array(actions, np.float32), None, robot, MOVES, safety)


def test_deltas_and_velocities_end_at_the_wall() -> None:
    safe, report = limited([[0.1, 1.0], [0.1, 1.0], [0.1, -1.0]], [0.35, 0.15], BOX)

    np.testing.assert_allclose(safe, [[0.1, 1.0], [0.05, 0.5], [0.0, -1.0]], atol=1e-6)
    assert report.status == "clamped"
    assert report.violations == (
        "dx exceeds its limit by 0.1 m",
        "vy exceeds its limit by 0.5 m/s",
    )


def test_inside_the_box_nothing_changes() -> None:
    actions = [[0.1, 1.0], [-0.1, -1.0]]

    safe, report = limited(actions, [0.0, 0.1], BOX)

    np.testing.assert_array_equal(safe, np.array(actions, np.float32))
    assert report.status == "ok"


def test_a_robot_outside_may_stay_or_come_back_but_not_leave_further() -> None:
    safe, _ = limited([[0.1, 0.0], [-0.08, 0.0], [0.1, 0.0], [-0.1, 0], [0.1, 0]], [0.55, 0.1], BOX)

    np.testing.assert_allclose(safe[:, 0], [0.0, -0.08, 0.03, -0.1, 0.1], atol=1e-6)


def test_a_chunk_stays_near_the_reported_state() -> None:
    safe, _ = limited([[0.1, 1.0]] * 3, [0.0, 0.1], Safety(max_from_state=(0.15, 0.05)))

    np.testing.assert_allclose(safe, [[0.1, 0.5], [0.05, 0.0], [0.0, 0.0]], atol=1e-6)


def test_poses_stay_near_the_reported_state() -> None:
    poses = space(dimensions=(POSE, msgspec.structs.replace(POSE, name="other", state=None)))

    safe, report = enforce(
        np.array([[0.5, 0.9], [-0.5, -0.9]], np.float32),
        None,
        Robot(np.array([0.2, np.nan], np.float32), NOTHING),
        poses,
        Safety(max_from_state=(0.1, None)),
    )

    np.testing.assert_allclose(safe, [[0.3, 0.9], [0.1, -0.9]], atol=1e-6)
    assert report.violations == ("z exceeds its limit by 0.6 m",)


def test_a_move_that_may_only_change_slowly_brakes_before_the_wall() -> None:
    """Steps of 0.02: a delta of 0.1 needs 0.3 m to stop."""
    safety = Safety(position_limits=((-0.5, 0.5), None), max_step=(0.02, None))

    safe, _ = limited([[0.1, 0.0]] * 12, [0.0, 0.0], safety, np.array([0.1, 0.0], np.float32))

    deltas = safe[:, 0]
    assert (np.abs(np.diff(deltas, prepend=0.1)) <= 0.02 + 1e-6).all()
    assert 0.45 < deltas.sum() <= 0.5 + 1e-6


def test_limits_that_contradict_each_other_hold_or_refuse() -> None:
    """It runs at the wall at full speed, and may neither stop nor go on."""
    safety = Safety(position_limits=((-0.5, 0.5), None), max_step=(0.02, None))

    safe, report = limited([[0.1, 0.0]] * 2, [0.5, 0.0], safety, np.array([0.1, 0.0], np.float32))

    np.testing.assert_array_equal(safe, np.zeros((2, 2)))
    assert (report.status, report.violations) == ("held", ("dx can't keep all its limits at once",))
    with pytest.raises(UnsafeAction, match=r"limits: dx can't keep all its limits at once$"):
        limited(
            [[0.1, 0]],
            [0.5, 0],
            msgspec.structs.replace(safety, mode="reject"),
            np.array([0.1, 0], np.float32),
        )


# Of a range of 2, and as float32.
ROUNDING = TOLERANCE * 2
SINGLE = float(np.float32(TOLERANCE) * 2)


@pytest.mark.parametrize(("over", "status"), [(0, "ok"), (SINGLE, "ok"), (1.05 * SINGLE, "held")])
def test_a_contradiction_within_rounding_is_none(over: float, status: str) -> None:
    """The pose lies outside the bounds by as much as the chunk may leave it, and by a bit more."""
    pose = Dimension(name="x", unit="m", low=-2, high=0, meaning="absolute", state="x")
    one = space(dimensions=(pose,), normalisation="identity", statistics=Statistics())
    robot = Robot(np.array([SINGLE + over]), np.array([np.nan]))

    safe, report = enforce(np.zeros((1, 1)), None, robot, one, Safety(max_from_state=(SINGLE,)))

    assert (safe.tolist(), report.status) == ([[0.0]], status)


@pytest.mark.parametrize(("over", "status"), [(ROUNDING, "ok"), (1.05 * ROUNDING, "clamped")])
def test_what_is_moved_by_rounding_is_not_said(over: float, status: str) -> None:
    pose = Dimension(name="x", unit="m", low=-2, high=0)
    one = space(dimensions=(pose,), normalisation="identity", statistics=Statistics())

    safe, report = enforce(
        np.array([[over]]), None, Robot(np.array([np.nan]), np.array([np.nan])), one, Safety()
    )

    assert (safe.tolist(), report.status) == ([[0.0]], status)


def test_what_may_only_slow_down_by_steps_begins_in_time() -> None:
    """0.2 + 0.1 m to the wall, by steps of 0.1 m: not 0.25 m at once, from which it could not stop."""
    fast = msgspec.structs.replace(DELTA, low=-1.0, high=1.0)
    moves = space(dimensions=(fast, SPEED), normalisation="identity")
    safety = Safety(position_limits=((-0.3, 0.3), None), max_step=(0.1, None))
    for way in (1, -1):
        robot = Robot(np.zeros(2, np.float32), np.array([0.25 * way, 0], np.float32))

        safe, _ = enforce(np.full((4, 2), way, np.float32), None, robot, moves, safety)

        np.testing.assert_allclose(safe[:, 0], np.multiply(way, [0.2, 0.1, 0, 0]), atol=1e-6)
        np.testing.assert_array_equal(safe[:, 1], np.full(4, way))


def test_what_may_stop_at_once_runs_to_the_wall() -> None:
    fast = msgspec.structs.replace(DELTA, low=-3.0, high=3.0)
    moves = space(dimensions=(fast, SPEED), normalisation="identity")
    safety = Safety(position_limits=((-5.0, 5.0), None), max_step=(None, 0.5))

    safe, _ = enforce(np.full((2, 2), 3, np.float32), None, Robot(np.zeros(2), NOTHING), moves, safety)

    np.testing.assert_array_equal(safe[:, 0], [3, 2])


STATE = Vector(
    dimensions=tuple(Dimension(name=name, unit="m", low=-1, high=1) for name in "xyz"),
    normalisation="identity",
    statistics=Statistics(),
)
NEED = r"of dx needs a dimension of the state in `state` and one of the meanings delta, velocity"


@pytest.mark.parametrize(
    ("dimension", "safety", "message"),
    [
        ({}, {"position_limits": ((0.5, -0.5), None)}, r"^safety\.position_limits of dx needs low < high"),
        ({}, {"position_limits": ((0.5, 0.5), None)}, r"^safety\.position_limits of dx needs low < high"),
        ({}, {"position_limits": ((-0.5, 0.5),)}, r"^safety\.position_limits has 1 values for the action "),
        ({}, {"max_from_state": (0.0, None)}, r"^safety\.max_from_state of dx must be positive, got 0\.0$"),
        ({"state": None}, {"position_limits": ((-1.0, 1.0), None)}, NEED),
        ({"meaning": "absolute"}, {"position_limits": ((-1.0, 1.0), None)}, NEED),
        ({"meaning": None}, {"max_from_state": (1.0, None)}, NEED),
        (
            {},
            {"position_limits": ((-1.0, 1.0), None), "hold_action": (0.01, None)},
            r"^safety\.hold_action of dx must be null: safety\.position_limits limits where it leads$",
        ),
        (
            {"meaning": "absolute"},
            {"max_from_state": (1.0, None), "hold_action": (0.0, None)},
            r"^safety\.hold_action of dx must be null: safety\.max_from_state limits where it leads$",
        ),
    ],
)
def test_limits_that_mean_nothing_are_refused(dimension: dict, safety: dict, message: str) -> None:
    changed = space(dimensions=(msgspec.structs.replace(DELTA, **dimension), SPEED), normalisation="identity")

    with pytest.raises(SpecError, match=message):
        msgspec.structs.replace(spec(space()), action=changed, state=STATE, safety=Safety(**safety))


def test_limits_that_mean_something_are_taken() -> None:
    safety = Safety(position_limits=((-1.0, 1.0), None), max_from_state=(0.5, 0.5), hold_action=(0.0, None))

    made = msgspec.structs.replace(spec(space()), action=MOVES, state=STATE, safety=safety)

    assert msgspec.json.decode(msgspec.json.encode(made), type=type(made)) == made
