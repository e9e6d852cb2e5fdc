"""What a robot may execute: every part of an answer is checked, numbers and symbols alike."""

import math
import re

import numpy as np
import pytest
from policy_server import ANSWER

from vla_client import ActionChunk, InvalidAnswer, SafetyReport, Symbol

LIFT = {"name": "lift", "index": 0, "probabilities": [1, 0]}
DROP = {"name": "drop", "index": 1, "probabilities": [0.25, 0.75]}
SYMBOLIC = ANSWER | {"action_names": ["lift", "drop"], "actions": [LIFT, DROP], "extras": {"skill": "tidy"}}


def refused(answer: object) -> str:
    with pytest.raises(InvalidAnswer) as caught:
        ActionChunk.from_answer(answer)
    return str(caught.value)


def test_symbols_are_read() -> None:
    chunk = ActionChunk.from_answer(SYMBOLIC)

    assert chunk.symbols == (Symbol("lift", 0, (1.0, 0.0)), Symbol("drop", 1, (0.25, 0.75)))
    assert (chunk.actions.shape, chunk.action_names) == ((2, 0), ("lift", "drop"))
    assert chunk.extras == {"skill": "tidy"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fly"}, "unknown action 'fly' at 0; the policy has lift, drop"),
        ({"index": 1}, "unknown action 'lift' at 1; the policy has lift, drop"),
        ({"index": "0"}, "unknown action 'lift' at '0'; the policy has lift, drop"),
        ({"index": 2}, "unknown action 'lift' at 2; the policy has lift, drop"),
        ({"name": "drop", "index": -1}, "unknown action 'drop' at -1; the policy has lift, drop"),
        ({"probabilities": {}}, "probabilities must be a list, got dict"),
        ({"probabilities": ["1", 0]}, "probabilities must be a number, got str"),
        ({"probabilities": [1, True]}, "probabilities must be a number, got bool"),
        ({"probabilities": [1]}, "probabilities must be 2 numbers from 0 to 1, got [1]"),
        ({"probabilities": [0.5, 1.5]}, "probabilities must be 2 numbers from 0 to 1, got [0.5, 1.5]"),
        ({"probabilities": [-0.5, 0.5]}, "probabilities must be 2 numbers from 0 to 1, got [-0.5, 0.5]"),
    ],
)
def test_a_symbol_that_is_none_is_refused(change: dict, message: str) -> None:
    assert refused(SYMBOLIC | {"actions": [LIFT | change, DROP]}) == message


@pytest.mark.parametrize("name", LIFT)
def test_a_symbol_needs_all_its_parts(name: str) -> None:
    part = {key: value for key, value in LIFT.items() if key != name}

    message = f"the answer has no actions.{name}; it has: {', '.join(sorted(part))}"
    assert refused(SYMBOLIC | {"actions": [part]}) == message


def test_numbers_and_symbols_do_not_mix() -> None:
    assert refused(SYMBOLIC | {"actions": [LIFT, [0.5, 0.5]]}) == "actions mix numbers and symbols"


@pytest.mark.parametrize(
    "name", ["actions", "action_names", "control_hz", "safety", "policy", "version", "request_id"]
)
def test_an_answer_needs_all_its_parts(name: str) -> None:
    part = {key: value for key, value in ANSWER.items() if key != name}

    assert refused(part) == f"the answer has no {name}; it has: {', '.join(sorted(part))}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": "none"}, "actions must be a list, got str"),
        ({"actions": [[True, False, True]]}, "actions are no table of numbers: they hold something else"),
        ({"actions": [[[1.0], [2.0], [3.0]]]}, "actions have shape [1, 3, 1], expected [T, 3] with T >= 1, "),
        ({"timing_ms": []}, "timing_ms must be a dict, got list"),
        ({"extras": 1}, "extras must be a dict, got int"),
        ({"safety": "ok"}, "safety must be a dict, got str"),
        ({"safety": {"status": "ok", "violations": "x"}}, "safety.violations must be a list, got str"),
        ({"confidence": True}, "confidence must be a number, got bool"),
        ({"confidence": "1"}, "confidence must be a number, got str"),
        ({"confidence": -0.1}, "confidence must be from 0 to 1, got -0.1"),
        ({"confidence": math.nan}, "confidence must be from 0 to 1, got nan"),
        ({"control_hz": True}, "control_hz must be a number, got bool"),
        ({"control_hz": math.inf}, "control_hz must be finite and above 0, got inf"),
        ({"control_hz": -1}, "control_hz must be finite and above 0, got -1"),
        ({"delay": -1}, "delay must be an integer from 0, got -1"),
        ({"delay": True}, "delay must be an integer from 0, got True"),
        ({"max_delay": 1.5}, "max_delay must be an integer from 0, got 1.5"),
    ],
)
def test_each_part_has_its_kind(change: dict, message: str) -> None:
    assert refused(ANSWER | change).startswith(message)


@pytest.mark.parametrize(
    "change",
    [
        {"confidence": 0},
        {"confidence": 1},
        {"control_hz": 0.5},
        {"actions": [[0, 0, 0]]},
        {"actions": [[2**63, 0, 1]]},
        *({"safety": {"status": status}} for status in ("ok", "clamped", "held")),
    ],
)
def test_what_is_at_the_edge_is_taken(change: dict) -> None:
    chunk = ActionChunk.from_answer(ANSWER | change)

    body = ANSWER | change
    np.testing.assert_array_equal(chunk.actions, np.float32(body["actions"]))
    assert (chunk.confidence, chunk.control_hz) == (body["confidence"], body["control_hz"])
    assert chunk.safety == SafetyReport(body["safety"]["status"], tuple(body["safety"].get("violations", ())))


def test_what_an_answer_may_leave_out() -> None:
    short = {key: value for key, value in ANSWER.items() if key not in {"timing_ms", "confidence"}}

    chunk = ActionChunk.from_answer(short)

    assert (chunk.timing_ms, chunk.extras, chunk.symbols, chunk.confidence) == ({}, {}, (), None)
    assert (chunk.delay, chunk.max_delay) == (0, 0)


def test_the_first_number_that_is_not_finite_is_named() -> None:
    rows = [[0, 0, 0], [0, math.inf, math.nan]]

    assert refused(ANSWER | {"actions": rows}) == "actions hold a non-finite number at step 1, y"


def test_a_chunk_made_by_hand_plans_for_no_delay() -> None:
    chunk = ActionChunk(
        np.zeros((1, 1), np.float32), ("a",), 10.0, None, SafetyReport("ok"), {}, "p", "1", "r"
    )

    assert (chunk.delay, chunk.max_delay, chunk.symbols, chunk.extras) == (0, 0, (), {})


def test_an_empty_answer_has_nothing() -> None:
    assert re.fullmatch(r"the answer has no action_names; it has: nothing", refused({}))
