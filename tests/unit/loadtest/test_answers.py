"""What a right answer is, and every way in which one is wrong."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from loadtest import answers
from loadtest.answers import Contract, ContractError, WrongAnswer, read_error
from loadtest.fleet import connection_class, judge_answer
from loadtest.samples import CLOSED, OK, REFUSED, TIMEOUT

DIMENSIONS = [
    {"name": "x", "unit": "m", "low": -1.0, "high": 1.0},
    {"name": "grip", "unit": "1", "low": 0.0, "high": 2.0},
]
DESCRIPTION: dict[str, Any] = {
    "name": "clip",
    "version": "1.0",
    "cameras": [{"name": "front"}],
    "state": None,
    "action": {"dimensions": DIMENSIONS, "horizon": 3, "control_hz": 10.0},
}
ANSWER: dict[str, Any] = {
    "actions": [[0.0, 1.0], [-1.0, 0.0], [1.0, 2.0]],
    "action_names": ["x", "grip"],
    "control_hz": 10.0,
    "confidence": None,
    "safety": {"status": "ok", "violations": []},
    "timing_ms": {"queue": 0.0, "inference": 5.5, "batch_size": 4},
    "policy": "clip",
    "version": "1.0",
    "request_id": "7",
}
CONTRACT = Contract.of(DESCRIPTION)


def test_right_answer() -> None:
    assert judge_answer(CONTRACT, 200, json.dumps(ANSWER).encode()) == (OK, "", 4)


@pytest.mark.parametrize(
    ("changes", "outcome", "detail"),
    [
        ({"actions": [[0.0, 1.0]] * 2}, "shape", "actions have shape [2, 2], expected [3, 2]"),
        (
            {"actions": [[0.0]] * 3},
            "form",
            "actions have shape [3, 1], expected [T, 2] with T >= 1, for x, grip",
        ),
        (
            {"actions": []},
            "form",
            "actions have shape [0], expected [T, 2] with T >= 1, for x, grip",
        ),
        (
            {"actions": [[0.0, 1.0], [0.0, 2.1], [0.0, 1.0]]},
            "bounds",
            "grip is 2.1 at step 1, outside 0 to 2",
        ),
        ({"actions": [[-1.1, 1.0]] * 3}, "bounds", "x is -1.1 at step 0, outside -1 to 1"),
        ({"action_names": ["grip", "x"]}, "names", "action_names are grip, x, expected x, grip"),
        ({"policy": "other"}, "policy", "other 1.0 at 10 Hz answered, expected clip 1.0 at 10 Hz"),
        ({"control_hz": 5.0}, "policy", "clip 1.0 at 5 Hz answered, expected clip 1.0 at 10 Hz"),
        ({"actions": None}, "form", "actions must be a list, got NoneType"),
        (
            {"safety": {"status": "fine", "violations": []}},
            "form",
            "safety.status is 'fine', expected one of ok, clamped, held",
        ),
    ],
)
def test_wrong_answer(changes: dict[str, Any], outcome: str, detail: str) -> None:
    body = json.dumps(ANSWER | changes).encode()

    assert judge_answer(CONTRACT, 200, body) == (f"wrong answer: {outcome}", detail, 0)


SYMBOLS = Contract.of(
    DESCRIPTION
    | {"action": {"kind": "discrete", "vocabulary": ["go", "stop"], "horizon": 2, "control_hz": 10.0}}
)


def symbols(*rows: tuple[str, int, list[float]]) -> bytes:
    actions = [{"name": name, "index": index, "probabilities": shares} for name, index, shares in rows]
    return json.dumps(ANSWER | {"actions": actions, "action_names": ["go", "stop"]}).encode()


def test_symbolic_actions() -> None:
    body = symbols(("go", 0, [0.9, 0.1]), ("stop", 1, [0.25, 0.75]))

    assert judge_answer(SYMBOLS, 200, body) == (OK, "", 4)


@pytest.mark.parametrize(
    ("row", "outcome", "detail"),
    [
        (("stop", 0, [0.9, 0.1]), "form", "unknown action 'stop' at 0; the policy has go, stop"),
        (("fly", 2, [0.9, 0.1]), "form", "unknown action 'fly' at 2; the policy has go, stop"),
        (("go", 0, [0.9]), "form", "probabilities must be 2 numbers from 0 to 1, got [0.9]"),
        (("go", 0, [0.9, 0.2]), "bounds", "the sum of probabilities is not 1"),
        (("go", 0, None), "form", "probabilities must be a list, got NoneType"),
    ],
)
def test_wrong_symbolic_actions(row: tuple[str, int, list[float]], outcome: str, detail: str) -> None:
    body = symbols(row, ("stop", 1, [0.25, 0.75]))

    assert judge_answer(SYMBOLS, 200, body) == (f"wrong answer: {outcome}", detail, 0)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
def test_what_is_not_finite_is_wrong(number: str) -> None:
    body = json.dumps(ANSWER).replace("[-1.0, 0.0]", f"[-1.0, {number}]").encode()

    with pytest.raises(WrongAnswer):
        CONTRACT.check(body)


def test_rounding_at_a_bound_is_right() -> None:
    CONTRACT.check(json.dumps(ANSWER | {"actions": [[1.000001, 2.000001]] * 3}).encode())


@pytest.mark.parametrize(
    ("status", "body", "outcome", "detail"),
    [
        (
            422,
            b'{"error":{"code":"invalid_value","field":"state","message":"too short"}}',
            "422 invalid_value",
            "too short",
        ),
        (
            503,
            b'{"code":503,"type":"ServiceUnavailableException","message":"full"}',
            "503 ServiceUnavailableException",
            "full",
        ),
        (502, b"<html>", "502 unreadable", "b'<html>'"),
        (404, b"[]", "404 unreadable", "b'[]'"),
    ],
)
def test_refusal_keeps_its_code(status: int, body: bytes, outcome: str, detail: str) -> None:
    assert judge_answer(CONTRACT, status, body) == (outcome, detail, 0)
    assert read_error(body) == (outcome.split(" ", 1)[1], detail)


def test_no_answer_has_a_class() -> None:
    assert connection_class(ConnectionRefusedError()) == REFUSED
    assert connection_class(TimeoutError()) == TIMEOUT
    assert connection_class(ConnectionResetError()) == CLOSED


def test_several_cameras_have_fields_of_their_own() -> None:
    two = Contract.of(DESCRIPTION | {"cameras": [{"name": "front"}, {"name": "wrist"}]})

    assert (CONTRACT.image_fields, two.image_fields) == (("image",), ("image.front", "image.wrist"))


def test_ragged_rows_are_wrong() -> None:
    body = json.dumps(ANSWER | {"actions": [[0.0, 1.0], [0.0], [0.0, 1.0]]}).encode()

    assert judge_answer(CONTRACT, 200, body)[0] == "wrong answer: form"


def test_symbols_where_numbers_are_promised_are_wrong() -> None:
    rows = [{"name": "x", "index": 0, "probabilities": [0.9, 0.1]}] * 3
    body = json.dumps(ANSWER | {"actions": rows}).encode()

    assert judge_answer(CONTRACT, 200, body)[0] == "wrong answer: form"


def test_history_has_a_field_a_step() -> None:
    one, two = [{"name": "front"}], [{"name": "front"}, {"name": "wrist"}]
    lone, pair = (Contract.of(DESCRIPTION | {"cameras": cameras, "history": 2}) for cameras in (one, two))

    assert lone.image_fields == ("image.0", "image.1")
    assert pair.image_fields == ("image.front.0", "image.front.1", "image.wrist.0", "image.wrist.1")


def test_description_without_an_action_is_refused() -> None:
    with pytest.raises(ContractError, match="lacks what answers are checked by: 'action'"):
        Contract.of({name: value for name, value in DESCRIPTION.items() if name != "action"})


def test_description_is_read_from_an_archive_or_alone(tmp_path: Path) -> None:
    example = {"images": {"front": "a.png"}, "command": "go", "seed": 0, "state": [], "actions": [[0, 1]]}
    text = json.dumps(DESCRIPTION | {"example": example})
    manifest = {"model": {"modelName": "vla", "modelVersion": "1.0"}}
    with zipfile.ZipFile(tmp_path / "vla.mar", "w") as archive:
        archive.writestr("policy.json", text)
        archive.writestr("a.png", b"png")
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    (tmp_path / "policy.json").write_text(text)

    alone = answers.description_in(tmp_path / "policy.json")

    assert alone == DESCRIPTION | {"example": example}
    assert answers.description_in(tmp_path / "vla.mar") == alone | {
        "example_request": {"image": "cG5n", "command": "go", "seed": 0}
    }


def test_unreadable_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"is neither an archive of a policy nor a policy\.json"):
        answers.description_in(tmp_path / "missing.mar")
    with pytest.raises(ContractError, match=r"name its archive instead: --policy vla\.mar"):
        answers.fetch("http://127.0.0.1:9", "vla")
