"""The limits on what leaves: nothing outside them, and what standing still is."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from action_spaces import SYMBOLS, space

from vla_runtime.errors import UnsafeAction
from vla_runtime.safety import TOLERANCE, Robot, enforce, enforce_discrete, wanted_beyond
from vla_runtime.spec import Dimension, Safety

STEP = (
    Dimension(name="delta_x", unit="m", low=-0.03, high=0.03),
    Dimension(name="gripper", unit="1", low=-1.0, high=1.0),
)
SPACE = space(dimensions=STEP)
NOBODY = np.full(2, np.nan, np.float32)
UNMEASURED = Robot(NOBODY, NOBODY)
CHUNK = np.array([[0.0, 0.0], [0.02, 0.5]], np.float32)
TOO_FAR = np.array([[0.0, 0.0], [0.05, 0.5]], np.float32)
NOT_A_NUMBER = np.array([[0.0, 0.0], [math.nan, 0.5]], np.float32)
EXCEEDED = ("delta_x exceeds its limit by 0.02 m",)


@pytest.mark.parametrize(
    ("chunk", "confidence", "safety", "expected", "status", "violations"),
    [
        (CHUNK, None, Safety(), CHUNK, "ok", ()),
        (TOO_FAR, None, Safety(), [[0, 0], [0.03, 0.5]], "clamped", EXCEEDED),
        (TOO_FAR, None, Safety(mode="hold", hold_action=(0, 1)), [[0, 1], [0, 1]], "held", EXCEEDED),
        (
            NOT_A_NUMBER,
            None,
            Safety(hold_action=(0, 1)),
            [[0, 1], [0, 1]],
            "held",
            ("delta_x is not finite",),
        ),
        (
            CHUNK,
            None,
            Safety(max_step=(0.005, None)),
            [[0, 0], [0.005, 0.5]],
            "clamped",
            ("delta_x exceeds its limit by 0.015 m",),
        ),
        (
            CHUNK,
            0.2,
            Safety(min_confidence=0.5, hold_action=(0, 1)),
            [[0, 1], [0, 1]],
            "held",
            ("confidence 0.200 is below 0.5",),
        ),
        (
            CHUNK,
            0.2,
            Safety(min_confidence=0.5, hold_action=(0, 1), hold_keeps=("gripper",)),
            [[0, CHUNK[0, 1]], [0, CHUNK[1, 1]]],
            "held",
            ("confidence 0.200 is below 0.5",),
        ),
        (
            NOT_A_NUMBER,
            0.2,
            Safety(min_confidence=0.5, hold_action=(0, 1), hold_keeps=("gripper",)),
            [[0, 1], [0, 1]],
            "held",
            ("delta_x is not finite", "confidence 0.200 is below 0.5"),
        ),
        (
            CHUNK,
            None,
            Safety(min_confidence=0.0, hold_action=(0, 1)),
            [[0, 1], [0, 1]],
            "held",
            ("confidence missing is below 0.0",),
        ),
        (CHUNK, 0.6, Safety(min_confidence=0.5, hold_action=(0, 1)), CHUNK, "ok", ()),
        (CHUNK, 0.5, Safety(min_confidence=0.5, hold_action=(0, 1)), CHUNK, "ok", ()),
    ],
)
def test_safety_limits(  # noqa: PLR0917
    chunk: np.ndarray,
    confidence: float,
    safety: Safety,
    expected: list,
    status: str,
    violations: tuple,
) -> None:
    safe, report = enforce(chunk, confidence, UNMEASURED, SPACE, safety)

    np.testing.assert_array_equal(safe, np.asarray(expected, np.float32))
    assert (report.status, report.violations) == (status, violations)


@pytest.mark.parametrize(("chunk", "safety"), [(TOO_FAR, Safety(mode="reject")), (NOT_A_NUMBER, Safety())])
def test_unsafe_action_is_rejected(chunk: np.ndarray, safety: Safety) -> None:
    with pytest.raises(
        UnsafeAction, match=r"^the policy's action is outside its safety limits: delta_x "
    ) as caught:
        enforce(chunk, None, UNMEASURED, SPACE, safety)

    assert caught.value.status == 503


POSES = (
    Dimension(name="x", unit="m", low=-1, high=1, meaning="absolute", state="x"),
    Dimension(name="gripper", unit="1", low=0, high=1, meaning="absolute", state="opening"),
)
MOVES = (
    Dimension(name="x", unit="m", low=-1, high=1, meaning="delta"),
    Dimension(name="turn", unit="rad/s", low=-1, high=1, meaning="velocity"),
)


@pytest.mark.parametrize(
    ("dimensions", "hold", "measured", "held"),
    [
        (MOVES, None, [math.nan, math.nan], [0, 0]),  # no change, no speed
        (POSES, None, [0.25, 0.75], [0.25, 0.75]),  # the arm stays, the gripper keeps what it holds
        (POSES, None, [1.2, 0.75], [1.0, 0.75]),  # reported beyond the bounds: the nearest inside
        (POSES, (None, 1.0), [0.25, 0.0], [0.25, 1.0]),  # a declared value first
        (MOVES, (0.5, None), [math.nan, math.nan], [0.5, 0]),
    ],
)
def test_hold_means_standing_still(
    dimensions: tuple, hold: tuple | None, measured: list[float], held: list[float]
) -> None:
    still = space(dimensions=dimensions)
    bad = np.full((2, 2), np.nan, np.float32)

    safe, report = enforce(
        bad, None, Robot(np.array(measured, np.float32), NOBODY), still, Safety(mode="hold", hold_action=hold)
    )

    np.testing.assert_array_equal(safe, np.array([held, held], np.float32))
    assert report.status == "held"


def test_a_pose_that_nobody_reports_cannot_be_held() -> None:
    with pytest.raises(UnsafeAction):
        enforce(np.full((2, 2), np.nan, np.float32), None, UNMEASURED, space(dimensions=POSES), Safety())


def test_a_pose_that_is_reported_in_part_cannot_be_held() -> None:
    robot = Robot(np.asarray([0.25, np.nan], np.float32), NOBODY)

    with pytest.raises(UnsafeAction):
        enforce(np.full((2, 2), np.nan, np.float32), None, robot, space(dimensions=POSES), Safety())


@pytest.mark.parametrize(("over", "share"), [(3e-8, 0), (1e-7, 0.25)])
def test_rounding_is_no_wish_beyond_the_bounds(over: float, share: float) -> None:
    """A millionth of the range, 6e-8 m here, is rounding."""
    for value in (0.03 + over, -0.03 - over):
        assert wanted_beyond(np.array([[value, 0], [0, 0]]), SPACE) == share


def test_rounding_includes_its_end() -> None:
    margin = TOLERANCE * (SPACE.high - SPACE.low)

    assert wanted_beyond(np.array([SPACE.low - margin, SPACE.high + margin]), SPACE) == 0


PROBABILITIES = np.array([[0.75, 0.25, 0, 0, 0, 0], [0.25, 0.75, 0, 0, 0, 0]], np.float32)
PARTLY_UNKNOWN = np.where([[True] * 6, [False] * 6], PROBABILITIES, np.nan).astype(np.float32)


@pytest.mark.parametrize(
    ("probabilities", "least", "violation"),
    [
        (PARTLY_UNKNOWN, None, "the logits are not finite"),
        (PROBABILITIES, 0.6, "confidence 0.500 is below 0.6"),
    ],
)
def test_symbols_are_held_or_rejected_as_the_mode_says(
    probabilities: np.ndarray, least: float | None, violation: str
) -> None:
    held, certain, report = enforce_discrete(
        probabilities, 0.5, SYMBOLS, Safety(hold_action="stop", min_confidence=least)
    )

    assert held.tolist() == [SYMBOLS.index("stop")] * 2
    np.testing.assert_array_equal(certain, np.eye(SYMBOLS.width, dtype=np.float32)[held])
    assert (report.status, report.violations) == ("held", (violation,))
    for refusing in (
        Safety(mode="reject", hold_action="stop", min_confidence=least),
        Safety(min_confidence=least),
    ):
        with pytest.raises(UnsafeAction, match=violation):
            enforce_discrete(probabilities, 0.5, SYMBOLS, refusing)


def test_the_likeliest_symbols_are_chosen() -> None:
    chosen, certain, report = enforce_discrete(PROBABILITIES, 0.5, SYMBOLS, Safety(min_confidence=0.5))

    assert (chosen.tolist(), report.status) == ([0, 1], "ok")
    np.testing.assert_array_equal(certain, PROBABILITIES)


def test_the_first_step_is_limited_from_the_reported_pose() -> None:
    chunk = np.array([[0.5, 0.5], [0.5, 0.5]], np.float32)
    safety = Safety(max_step=(0.1, None))

    safe, report = enforce(
        chunk, None, Robot(np.array([0.0, 0.0], np.float32), NOBODY), space(dimensions=POSES), safety
    )

    np.testing.assert_allclose(safe, [[0.1, 0.5], [0.2, 0.5]], atol=1e-6)
    assert report.violations == ("x exceeds its limit by 0.4 m",)


def test_steps_are_limited_across_the_border_of_two_chunks() -> None:
    robot = Robot(NOBODY, np.array([0.01, -0.5], np.float32))

    safe, report = enforce(CHUNK, None, robot, SPACE, Safety(max_step=(0.005, 0.25)))

    np.testing.assert_allclose(safe, [[0.005, -0.25], [0.01, 0]], atol=1e-7)
    assert report.status == "clamped"


def test_the_reported_pose_counts_before_the_previous_action() -> None:
    chunk = np.full((2, 2), 0.5, np.float32)
    robot = Robot(np.array([0, np.nan], np.float32), np.array([0.4, 0.9], np.float32))

    safe, _ = enforce(chunk, None, robot, space(dimensions=POSES), Safety(max_step=(0.1, 0.1)))

    np.testing.assert_allclose(safe, [[0.1, 0.8], [0.2, 0.7]], atol=1e-6)


def test_a_gripper_that_is_not_measured_keeps_what_it_does() -> None:
    robot = Robot(np.array([0.25, np.nan], np.float32), np.array([0.9, 1.0], np.float32))

    held, _ = enforce(np.full((2, 2), np.nan, np.float32), None, robot, space(dimensions=POSES), Safety())

    np.testing.assert_array_equal(held, np.array([[0.25, 1.0]] * 2, np.float32))


ODD = np.array([math.nan, math.inf, -math.inf, 0, 1, -1, 3e38], np.float32)


def draw(values: list[float | None], random: np.random.Generator) -> float | None:
    return values[random.integers(len(values))]


def raw_outputs(count: int) -> Iterator[tuple[np.ndarray, np.ndarray, float | None, float | None]]:
    """Draw raw chunks [4, 2], reported states [2], confidences and their limits, odd values among them."""
    random = np.random.default_rng(0)
    for _ in range(count):
        measured = random.uniform(-2, 2, 2).astype(np.float32)
        chunk = (measured + random.normal(0, random.choice([0.01, 1, 100]), (4, 2))).astype(np.float32)
        odd = random.random((4, 2)) < random.choice([0, 0, 0.1])
        chunk[odd] = random.choice(ODD, odd.sum())
        confidence = draw([None, math.nan, *random.random(3).tolist()], random)
        yield chunk, measured, confidence, draw([None, 0.0, 0.5], random)


@pytest.mark.parametrize("mode", ["clamp", "hold", "reject"])
def test_whatever_leaves_is_inside_every_limit_or_refused(mode: Literal["clamp", "hold", "reject"]) -> None:
    limited, steps, seen = space(dimensions=POSES), np.array([0.1, 0.2], np.float32), Counter()
    for chunk, measured, confidence, least in raw_outputs(3000):
        safety = Safety(mode=mode, max_step=(0.1, 0.2), min_confidence=least)
        try:
            safe, report = enforce(chunk, confidence, Robot(measured, NOBODY), limited, safety)
        except UnsafeAction:
            seen["refused"] += 1
            continue
        seen[report.status] += 1
        assert np.isfinite(safe).all()
        assert ((safe >= limited.low) & (safe <= limited.high)).all()
        ways = np.diff(np.vstack([np.clip(measured, limited.low, limited.high), safe]), axis=0)
        assert (np.abs(ways) <= steps + 1e-6).all()
        if least is not None and not (confidence is not None and confidence >= least):
            assert report.status == "held"
    assert (
        set(seen)
        == {
            "clamp": {"ok", "clamped", "held"},
            "hold": {"ok", "held"},
            "reject": {"ok", "refused"},
        }[mode]
    )
