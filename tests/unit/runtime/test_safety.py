"""The limits on what leaves: nothing outside them, and what standing still is."""

import math

import numpy as np
import pytest
from action_spaces import space

from vla_runtime.errors import UnsafeAction
from vla_runtime.safety import enforce
from vla_runtime.spec import Dimension, Safety

STEP = (
    Dimension(name="delta_x", unit="m", low=-0.03, high=0.03),
    Dimension(name="gripper", unit="1", low=-1.0, high=1.0),
)
SPACE = space(dimensions=STEP)
UNMEASURED = np.full(2, np.nan, np.float32)
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
            None,
            Safety(min_confidence=0.0, hold_action=(0, 1)),
            [[0, 1], [0, 1]],
            "held",
            ("confidence missing is below 0.0",),
        ),
        (CHUNK, 0.6, Safety(min_confidence=0.5, hold_action=(0, 1)), CHUNK, "ok", ()),
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
