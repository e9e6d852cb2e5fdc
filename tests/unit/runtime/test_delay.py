"""Real-time chunking: a chunk that begins with what is executed meanwhile, alone and beside plain rows."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from action_spaces import SYMBOLS, space
from kinds import FRONT, STATE, Module, policy, raw
from PIL import Image
from torch import Tensor

from vla_runtime import wire
from vla_runtime.errors import RequestError, SpecError
from vla_runtime.policy import Answer, Policy
from vla_runtime.spec import Dimension, Safety

HORIZON, LONGEST = 4, 2
INPUTS = ("image.front", "prefix", "delay")
REST = [[0.01, 0.5], [0.02, 0.25], [-0.01, 0.75]]
ROW: dict[str, object] = {"image": raw(51)}
DELAYED = ROW | {"previous": REST, "delay": 2}


def following(front: Tensor, prefix: Tensor, delay: Tensor) -> Tensor:
    """Go on from the sum of what is given by a step as bright as the picture."""
    known = (torch.arange(HORIZON) < delay[:, None])[..., None]
    told = torch.where(known, prefix, 0).sum(1, keepdim=True)  # [B, 1, A]
    return torch.where(known, prefix, told / 4 + front.mean((1, 2, 3))[:, None, None] / 10)


def made(folder: Path, **fields: Any) -> tuple[Policy, Module]:
    action = space(normalisation="identity", horizon=HORIZON)
    return policy(following, folder, INPUTS, **{"action": action, "max_delay": LONGEST} | fields)


@pytest.fixture
def planning(tmp_path: Path) -> Policy:
    return made(tmp_path)[0]


def chunks(policy: Policy, *rows: dict[str, object]) -> list[np.ndarray]:
    answers = policy.infer(rows)
    assert all(isinstance(answer, Answer) for answer in answers), answers
    return [answer.chunk.actions for answer in answers if isinstance(answer, Answer)]


def body_of(policy: Policy, data: dict[str, object], media_type: str) -> dict[str, Any]:
    answer = policy.infer([wire.read(data, media_type)])[0]
    assert isinstance(answer, Answer), answer
    return wire.answer_body(answer, policy.spec, 0.0)


def test_the_chunk_begins_with_what_is_executed_meanwhile(planning: Policy) -> None:
    (plain,), (delayed,) = chunks(planning, ROW), chunks(planning, DELAYED)

    np.testing.assert_array_equal(delayed[:2], np.array(REST[:2], np.float32))
    np.testing.assert_allclose(delayed[2:, 1], 0.75 / 4 + 0.02, atol=1e-6)
    np.testing.assert_allclose(plain[:, 1], 0.02, atol=1e-6)


def test_every_body_carries_it_and_the_answer_says_it(planning: Policy) -> None:
    form = {"image": raw(51), "previous": json.dumps(REST).encode(), "delay": b"2"}
    packed = msgspec.msgpack.encode(DELAYED)
    picture = dict(DELAYED, image=png_text())

    bodies = [
        body_of(planning, form, wire.MULTIPART),
        body_of(planning, {"body": packed}, wire.MSGPACK),
        body_of(planning, {"body": json.dumps(picture).encode()}, wire.JSON),
    ]

    assert [(body["delay"], body["max_delay"]) for body in bodies] == [(2, LONGEST)] * 3
    assert all(body["actions"] == bodies[0]["actions"] for body in bodies)
    assert body_of(planning, dict(ROW), wire.MULTIPART)["delay"] == 0


def png_text() -> str:
    """Return the picture of ROW as base64."""
    file = io.BytesIO()
    Image.new("RGB", (FRONT.width, FRONT.height), (51, 51, 51)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_rows_without_it_are_the_same_bit_for_bit(planning: Policy) -> None:
    others: list[dict[str, object]] = [{"image": raw(20)}, {"image": raw(90), "previous": REST, "delay": 0}]

    alone = chunks(planning, others[0], ROW, others[1])
    beside = chunks(planning, others[0], DELAYED, others[1])
    padded = chunks(planning, DELAYED, others[0], others[1])

    for mine, its in zip((alone[0], alone[2]), (beside[0], beside[2]), strict=True):
        np.testing.assert_array_equal(mine, its)
    np.testing.assert_array_equal(padded[1], alone[0])
    np.testing.assert_array_equal(padded[0], beside[1])


INTEGER = "must be an integer from 0 to 2 steps"
ACTIONS = "a JSON array of 2 numbers: x, gripper"


@pytest.mark.parametrize(
    ("change", "status", "field", "message"),
    [
        ({"delay": -1}, 422, "delay", INTEGER),
        ({"delay": 3}, 422, "delay", INTEGER),
        ({"delay": 1.0}, 422, "delay", INTEGER),
        ({"delay": True}, 422, "delay", INTEGER),
        ({"delay": "1e0"}, 422, "delay", INTEGER),
        ({"delay": None}, 422, "delay", INTEGER),
        ({"previous": REST[:1]}, 422, "delay", "is 2 steps, more than the 1 actions of `previous`"),
        ({"previous": None}, 400, "previous", "needs the 2 actions that are executed meanwhile, or more"),
        (
            {"previous": REST[0]},
            422,
            "previous",
            "with a delay of 2 must be a JSON array of actions, got one",
        ),
        ({"previous": REST + REST}, 422, "previous", "must have at most 4 actions, got 6"),
        ({"previous": [[0.01], [0.0, 1.0]]}, 422, "previous", f"each {ACTIONS}; got 1 numbers"),
        ({"previous": [[0.01, 0.5], 3]}, 422, "previous", f"each {ACTIONS}; got a number"),
        ({"previous": [[0.01, 0.5], [0.0, float("nan")]]}, 422, "previous", "gripper must be finite"),
        ({"previous": b"[[0.01, 0.5], [0.0, Infinity]]"}, 422, "previous", "gripper must be finite"),
        ({"previous": [[3, 0.5], [0, 0.5]]}, 422, "previous", "x is 3, far outside [-0.03, 0.03] m"),
        ({"previous": []}, 422, "previous", f"must be {ACTIONS}; got 0 numbers"),
        ({"previous": {"a": 1}}, 422, "previous", f"must be {ACTIONS}; got an object"),
    ],
)
def test_what_contradicts_itself_is_refused(
    planning: Policy, change: dict[str, object], status: int, field: str, message: str
) -> None:
    refused, beside = planning.infer([DELAYED | change, ROW])

    assert isinstance(refused, RequestError)
    assert (refused.status, refused.field) == (status, field)
    assert message in refused.message
    assert isinstance(beside, Answer)


def test_a_policy_that_does_not_plan_for_it_takes_none(tmp_path: Path) -> None:
    plain, _ = policy(
        lambda front: front.mean((1, 2, 3))[:, None, None].expand(-1, 2, 2), tmp_path, ("image.front",)
    )
    (refused,), (table,) = plain.infer([ROW | {"delay": 0}]), plain.infer([ROW | {"previous": REST}])

    assert isinstance(refused, RequestError)
    assert (refused.status, refused.code, refused.field) == (400, "unknown_field", "delay")
    assert isinstance(table, RequestError)
    assert (table.status, table.field) == (422, "previous")
    assert "delay" not in body_of(plain, dict(ROW), wire.MULTIPART)


def test_limits_hold_from_the_last_given_action_on(tmp_path: Path) -> None:
    limited, _ = made(tmp_path, safety=Safety(max_step=(None, 0.1)))
    (chunk,) = chunks(limited, DELAYED)

    np.testing.assert_allclose(chunk[:, 1], [0.5, 0.25, 0.2075, 0.2075], atol=1e-6)
    (far,) = chunks(limited, DELAYED | {"previous": [[0, 0.5], [0, 1.0]]})
    np.testing.assert_allclose(far[:, 1], [0.5, 1.0, 0.9, 0.8], atol=1e-6)


def test_a_lone_action_still_is_the_one_before_the_chunk(tmp_path: Path) -> None:
    limited, _ = made(tmp_path, safety=Safety(max_step=(None, 0.1)))
    (chunk,) = chunks(limited, ROW | {"previous": [0.0, 0.5]})

    np.testing.assert_allclose(chunk[:, 1], [0.4, 0.3, 0.2, 0.1], atol=1e-6)


def test_the_policy_gets_them_in_its_own_units(tmp_path: Path) -> None:
    action = space(
        normalisation="bounds",
        horizon=HORIZON,
        dimensions=(
            Dimension(name="x", unit="m", low=-1, high=3, meaning="absolute", state="x", relative=True),
            Dimension(name="gripper", unit="1", low=0, high=1),
        ),
        padded_to=3,
    )
    relative, module = made(tmp_path, action=action, state=STATE)
    (chunk,) = chunks(relative, DELAYED | {"state": [0.5, 0.0], "previous": [[1.5, 0.5], [0.5, 1.0]]})

    *_, prefix, delay = module.acts[-1]
    np.testing.assert_allclose(prefix[0], [[0, 0, 0], [-0.5, 1, 0], [0, 0, 0], [0, 0, 0]], atol=1e-6)
    assert delay.tolist() == [2]
    np.testing.assert_array_equal(chunk[:2], np.array([[1.5, 0.5], [0.5, 1.0]], np.float32))


@pytest.mark.parametrize(
    ("inputs", "fields", "message"),
    [
        (INPUTS, {"max_delay": HORIZON}, "max_delay must be from 0 to 3, got 4"),
        (INPUTS, {"max_delay": -1}, "max_delay must be from 0 to 3, got -1"),
        (INPUTS, {"max_delay": 0}, r"max_delay is 0, and of 'prefix' and 'delay' artifact.inputs names \["),
        (INPUTS[:2], {"max_delay": 1}, r"artifact.inputs names \['prefix'\]"),
        (INPUTS[:1], {"max_delay": 1}, r"artifact.inputs names \[\]"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(
    tmp_path: Path, inputs: tuple[str, ...], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        policy(following, tmp_path, inputs, action=space(horizon=HORIZON), **fields)


def test_symbols_have_no_delay(planning: Policy) -> None:
    artifact = msgspec.structs.replace(planning.spec.artifact, outputs=("logits",))
    with pytest.raises(SpecError, match="no meaning for discrete actions"):
        msgspec.structs.replace(planning.spec, action=SYMBOLS, artifact=artifact, max_delay=1)
