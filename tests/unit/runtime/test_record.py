"""Why a policy did that: the record for programs, and the sentence for people."""

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from action_spaces import spec

from vla_runtime.actions import ActionChunk
from vla_runtime.record import record, sentence
from vla_runtime.safety import SafetyReport
from vla_runtime.spec import (
    Camera,
    ContinuousSpace,
    Dimension,
    DiscreteSpace,
    Extra,
    PolicySpec,
    Statistics,
    Vector,
)
from vla_runtime.staging import Inputs

SPACE = ContinuousSpace(
    dimensions=(
        Dimension(name="x", unit="m", low=-1, high=1, meaning="delta"),
        Dimension(name="turn", unit="rad/s", low=-1, high=1, meaning="velocity"),
        Dimension(name="z", unit="m", low=-1, high=1, meaning="absolute"),
        Dimension(name="grip", unit="1", low=-1, high=1),
    ),
    normalisation="identity",
    statistics=Statistics(),
    horizon=2,
    control_hz=5.0,
)
ACTIONS = np.array([[0.1, 0.5, 0.2, 1], [0.02, 0.25, 0.3, -1]], np.float32)
EXTRAS = {"skill": Extra(labels=("lift",)), "target": Extra(unit="m"), "map": Extra(), "done": Extra()}
FOUND = {"skill": "lift", "target": [0.12345, -0.5], "map": [[0.0]], "done": 0.25}
CHUNK = ActionChunk(ACTIONS, SPACE, SafetyReport("ok", ()), 0.876, None, None, FOUND)


@pytest.fixture
def two_cameras() -> tuple[PolicySpec, Inputs]:
    """A policy of two cameras and a state, and what it was sent."""
    height = Dimension(name="height", unit="m", low=0, high=1)
    seen = msgspec.structs.replace(
        spec(SPACE, extras=EXTRAS),
        cameras=(Camera(name="front", width=6, height=4), Camera(name="wrist", width=2, height=2)),
        state=Vector(dimensions=(height,), normalisation="identity", statistics=Statistics()),
    )
    nothing = np.zeros(0, np.int64)
    sent = {
        "image.front": np.full((3, 4, 6), 102, np.uint8),
        "image.wrist": np.full((3, 2, 2), 255, np.uint8),
    }
    return seen, Inputs(sent, nothing, nothing, np.array([0.25], np.float32), nothing, 0.0, command="go")


def changed(**fields: Any) -> ActionChunk:
    return dataclasses.replace(CHUNK, **fields)


def test_a_sentence_says_how_sure_what_was_understood_what_it_does_and_what_limits_did() -> None:
    assert sentence(CHUNK, EXTRAS) == (
        "It is 88 % sure. It understood: skill lift; target 0.123, -0.5 m; done 0.25. 2 actions in 0.4 s, "
        "the first: x +0.1 m, turn +0.5 rad/s, z +0.2 m, grip +1. No limit acted."
    )


def test_what_a_policy_does_not_say_is_not_said_for_it() -> None:
    said = sentence(changed(confidence=None, extras={}), {})
    assert said.startswith("It does not say how sure it is. 2 actions in ")
    assert sentence(changed(confidence=0.0), EXTRAS).startswith("It is 0 % sure. ")


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (SafetyReport("ok", (), 0.0), "No limit acted."),
        (SafetyReport("ok", (), 0.126), "No limit acted. 13 % of what it wanted lay beyond the bounds."),
        (SafetyReport("clamped", ("x is fast", "z is low")), "It was limited: x is fast; z is low."),
        (SafetyReport("held", ("confidence is low",)), "It was held: confidence is low."),
        (SafetyReport("clamped", tuple("abcde")), "It was limited: a; b; c; and 2 more."),
        (SafetyReport("clamped", tuple("abc")), "It was limited: a; b; c."),
    ],
)
def test_limits(report: SafetyReport, said: str) -> None:
    assert sentence(changed(safety=report), EXTRAS).endswith(f" grip +1. {said}")


def test_symbols_are_said_one_after_the_other() -> None:
    space = DiscreteSpace(vocabulary=("wait", "lift", "open"), horizon=3, control_hz=2.0)
    chunk = changed(actions=np.array([1, 0, 1]), space=space, probabilities=np.zeros((3, 3)))
    assert "done 0.25. 3 actions in 1.5 s: lift, then wait, then lift. No limit" in sentence(chunk, EXTRAS)


def test_a_record(two_cameras: tuple[PolicySpec, Inputs]) -> None:
    policy, inputs = two_cameras
    found = record(CHUNK, inputs, policy)

    assert found["sentence"] == sentence(CHUNK, EXTRAS)
    assert found["seen"] == {
        "command": "go",
        "cameras": {
            "front": {"width": 6, "height": 4, "brightness": 0.4},
            "wrist": {"width": 2, "height": 2, "brightness": 1.0},
        },
        "state": {"height": 0.25},
    }
    assert found["understood"] == {"confidence": 0.876, **FOUND}
    assert found["decided"] == {
        "seconds": 0.4,
        "first": {"x": 0.1, "turn": 0.5, "z": 0.2, "grip": 1.0},
        "whole": {"x": 0.12, "turn": 0.15, "z": 0.3},
    }


def test_a_record_of_symbols(two_cameras: tuple[PolicySpec, Inputs]) -> None:
    policy, inputs = two_cameras
    space = DiscreteSpace(vocabulary=("wait", "lift"), horizon=2, control_hz=2.0)
    chunk = changed(actions=np.array([1, 0]), space=space, probabilities=np.zeros((2, 2)))
    assert record(chunk, inputs, policy)["decided"] == {
        "seconds": 1.0,
        "first": "lift",
        "whole": ["lift", "wait"],
    }
