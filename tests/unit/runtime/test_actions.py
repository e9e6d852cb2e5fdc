"""From a policy's output to the answer that a client reads: rotations, symbols, extras, safety."""

import json
import math
from typing import Any

import numpy as np
import pytest
from action_spaces import COLUMNS, NAMES, NOTHING, QUATERNION, SYMBOLS, UNKNOWN, outputs, space, spec

from vla_client import ActionChunk, InvalidAnswer
from vla_runtime import wire
from vla_runtime.actions import (
    softmax,
    to_chunk,
    unnormalise,
)
from vla_runtime.artifact import Outputs
from vla_runtime.errors import PolicyFailed, UnsafeAction
from vla_runtime.policy import Answer
from vla_runtime.spec import (
    BinnedSpace,
    ContinuousSpace,
    Extra,
    PolicySpec,
    Rotation,
    Safety,
)


@pytest.mark.parametrize("kind", [ContinuousSpace, BinnedSpace])
def test_rotations_of_a_chunk_are_valid_after_unnormalisation(kind: type[ContinuousSpace]) -> None:
    rotations = (
        Rotation(kind="rotation_6d", dimensions=COLUMNS),
        Rotation(kind="quaternion", dimensions=QUATERNION),
    )
    turning = space(kind, QUATERNION + COLUMNS, rotations=rotations)
    values = np.random.default_rng(0).uniform(-1, 1, (2, 12)).astype(np.float32)

    chunk = to_chunk(outputs(values), NOTHING, UNKNOWN, spec(turning))

    np.testing.assert_allclose(chunk.actions[:, :2], unnormalise(values, turning)[:, :2])
    np.testing.assert_allclose(np.linalg.norm(chunk.actions[:, 2:6], axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose((chunk.actions[:, 6:9] * chunk.actions[:, 9:]).sum(-1), 0, atol=1e-6)
    assert chunk.safety.status == "ok"


def test_rotation_without_direction_is_held() -> None:
    turning = space(names=QUATERNION, rotations=(Rotation(kind="quaternion", dimensions=QUATERNION),))
    hold = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    chunk = to_chunk(outputs(np.zeros((2, 6))), NOTHING, UNKNOWN, spec(turning, Safety(hold_action=hold)))

    np.testing.assert_array_equal(chunk.actions, [hold, hold])
    assert chunk.safety.violations == tuple(f"{name} is not finite" for name in QUATERNION)


LOGITS = np.log(np.array([[0.1, 0.6, 0.1, 0.1, 0.05, 0.05], [0.05, 0.05, 0.1, 0.1, 0.3, 0.4]], np.float32))


def body(policy: PolicySpec, output: Outputs) -> dict:
    """What the client reads: the answer through JSON, as the server sends it."""
    answer = Answer(to_chunk(output, NOTHING, UNKNOWN, policy), {"inference": 1.0}, 1)
    data, _ = wire.serialise(wire.answer_body(answer, policy, 0.0) | {"request_id": "r"}, "application/json")
    return json.loads(data)


def test_discrete_answer_has_names_indices_and_probabilities() -> None:
    answer = body(spec(SYMBOLS), outputs(LOGITS))

    assert [action["name"] for action in answer["actions"]] == ["pick_up", "stop"]
    assert [action["index"] for action in answer["actions"]] == [1, 5]
    np.testing.assert_allclose(
        [action["probabilities"] for action in answer["actions"]], np.exp(LOGITS), atol=1e-6
    )
    assert answer["action_names"] == list(NAMES)
    assert answer["confidence"] == pytest.approx(0.4)
    assert "extras" not in answer


def test_client_reads_a_discrete_answer() -> None:
    chunk = ActionChunk.from_answer(body(spec(SYMBOLS), outputs(LOGITS)))

    assert [(symbol.name, symbol.index) for symbol in chunk.symbols] == [("pick_up", 1), ("stop", 5)]
    assert chunk.symbols[0].probabilities[1] == pytest.approx(0.6)
    assert (chunk.actions.shape, chunk.action_names, chunk.extras) == ((2, 0), NAMES, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fly"}, r"^unknown action 'fly' at 1; the policy has navigate_to, "),
        ({"index": 9}, r"^unknown action 'pick_up' at 9; "),
        ({"probabilities": [1.0]}, r"^probabilities must be 6 numbers from 0 to 1, got \[1\.0\]"),
    ],
)
def test_client_refuses_a_bad_symbol(change: dict, message: str) -> None:
    answer = body(spec(SYMBOLS), outputs(LOGITS))
    answer["actions"][0] |= change

    with pytest.raises(InvalidAnswer, match=message):
        ActionChunk.from_answer(answer)


@pytest.mark.parametrize(
    ("logits", "confidence", "limit", "violation"),
    [
        (np.full((2, 6), math.nan), 0.9, None, "the logits are not finite"),
        (LOGITS, None, 0.5, "confidence 0.400 is below 0.5"),
        (LOGITS, 0.2, 0.5, "confidence 0.200 is below 0.5"),
    ],
)
def test_doubtful_discrete_chunk_is_held(
    logits: np.ndarray, confidence: float | None, limit: float | None, violation: str
) -> None:
    safety = Safety(hold_action="stop", min_confidence=limit)
    answer = body(spec(SYMBOLS, safety, outputs=("logits", "confidence")), outputs(logits, confidence))

    assert [action["name"] for action in answer["actions"]] == ["stop", "stop"]
    assert answer["actions"][0]["probabilities"] == [0, 0, 0, 0, 0, 1]
    assert answer["safety"] == {"status": "held", "violations": [violation], "saturated": None}


def test_discrete_chunk_without_a_safe_action_is_refused() -> None:
    with pytest.raises(UnsafeAction, match=r"outside its safety limits: the logits are not finite$"):
        to_chunk(outputs(np.full((2, 6), math.inf)), NOTHING, UNKNOWN, spec(SYMBOLS))


@pytest.mark.parametrize(("saturating", "status"), [(True, "ok"), (False, "clamped")])
def test_what_the_policy_wanted_beyond_its_bounds_is_counted(*, saturating: bool, status: str) -> None:
    policy = spec(space(saturating=saturating))

    answer = body(policy, outputs([[1.5, 1.0], [-0.5, -1.00001]]))

    np.testing.assert_allclose(answer["actions"], [[0.03, 1], [-0.015, 0]], atol=1e-7)
    assert answer["safety"]["saturated"] == 0.5
    assert answer["safety"]["status"] == status


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_means_no_bound(value: float) -> None:
    policy = spec(space(saturating=True), Safety(hold_action=(0.0, 1.0)))

    answer = body(policy, outputs([[value, 0], [0, 0]]))

    assert answer["safety"]["status"] == "held"
    assert answer["safety"]["violations"] == ["x is not finite"]


def test_confidence_that_is_too_low_is_said() -> None:
    safety = Safety(min_confidence=0.5, hold_action=(0.0, 1.0))
    policy = spec(space(), safety, outputs=("actions", "confidence"))

    answer = body(policy, outputs([[0.5, 0], [0, 0]], confidence=0.25))

    assert answer["safety"] == {
        "status": "held",
        "violations": ["confidence 0.250 is below 0.5"],
        "saturated": 0.0,
    }
    assert (answer["confidence"], answer["actions"]) == (0.25, [[0, 1], [0, 1]])


def test_extras_are_shown_as_declared() -> None:
    extras = {"skill": Extra(labels=("pick", "place")), "score": Extra(), "box": Extra(unit="share")}
    policy = spec(space(), extras=extras)
    output = outputs([[0, 0], [0, 0]], skill=1, score=0.5, box=[0.0, 0.25, 0.5, 1.0])

    chunk = ActionChunk.from_answer(body(policy, output))

    assert chunk.extras == {
        "skill": {"name": "place", "index": 1},
        "score": 0.5,
        "box": [0.0, 0.25, 0.5, 1.0],
    }


def test_labels_of_several_indices() -> None:
    policy = spec(space(), extras={"skill": Extra(labels=("pick", "place"))})

    chunk = to_chunk(outputs([[0, 0], [0, 0]], skill=[1.0, 0.0]), NOTHING, UNKNOWN, policy)

    assert chunk.extras["skill"] == [{"name": "place", "index": 1}, {"name": "pick", "index": 0}]


TEXT = {"text": Extra(pieces=("", " the", " red", " block", ";", " I"))}


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ([1, 2, 3, 4, 5, 0], "the red block; I"),
        ([2, 0, 3, 4, 5, 1], "red"),
        ([0, 0, 0, 0, 0, 0], ""),
        ([1, 3, 1, 3, 1, 3], "the block the block the block"),
    ],
)
def test_pieces_are_joined_to_a_text_up_to_the_empty_one(said: list[int], text: str) -> None:
    chunk = ActionChunk.from_answer(body(spec(space(), extras=TEXT), outputs([[0, 0], [0, 0]], text=said)))

    assert chunk.extras == {"text": text}


@pytest.mark.parametrize("said", [[1, 6, 0], [-1, 0, 0], [[1, 2], [3, 0]], 1])
def test_a_text_of_unknown_pieces_fails_this_request_alone(said: Any) -> None:
    with pytest.raises(PolicyFailed, match=r"^the policy's text must be a row of indices from 0 to 5, "):
        to_chunk(outputs([[0, 0], [0, 0]], text=said), NOTHING, UNKNOWN, spec(space(), extras=TEXT))


def test_probabilities_are_over_the_last_axis_whatever_the_others() -> None:
    logits = np.log(np.array([[[1, 3], [2, 2]], [[9, 1], [1, 1]]], np.float32))

    np.testing.assert_allclose(
        softmax(logits), [[[0.25, 0.75], [0.5, 0.5]], [[0.9, 0.1], [0.5, 0.5]]], atol=1e-6
    )
