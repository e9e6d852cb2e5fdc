"""Requests whose right answer is known: asked alone before the load, and held against answers under it."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_server import ANSWER, Server, running_server
from test_answers import DESCRIPTION

from loadtest import answers, known
from loadtest.access import NOTHING
from loadtest.known import COUNT, Known, NotAsked

EXAMPLE = {"image.front": base64.b64encode(b"\xff\xd8 a picture").decode(), "command": "go", "seed": 0}
RECORDED = [[0.5, 1.0]] * 3
WITH_EXAMPLE = DESCRIPTION | {"example": {"actions": RECORDED}, "example_request": EXAMPLE}


def answer(actions: list[list[float]], **changes: Any) -> str:
    given = {"policy": "clip", "action_names": ["x", "grip"], "actions": actions}
    return json.dumps(ANSWER | {"safety": {"status": "ok", "violations": []}} | given | changes)


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


def ask(server: Server, description: dict[str, Any] = WITH_EXAMPLE) -> Known:
    return known.ask(f"{server.url}/predictions/vla", NOTHING, description, seed=0)


def test_example_and_different_requests_are_asked(server: Server) -> None:
    server.answers = iter([answer(RECORDED), *(answer([[0.1 * i, 0.2 * i]] * 3) for i in range(COUNT))])

    found = ask(server)

    fields = [fields for _, _, fields in server.requests]
    assert fields[0]["image"][1] == b"\xff\xd8 a picture"
    assert len({request["image"] for request in fields}) == COUNT + 1
    first = np.array([request.actions for request in found.requests[:3]])
    np.testing.assert_allclose(first, [RECORDED, [[0.0, 0.0]] * 3, [[0.1, 0.2]] * 3], atol=1e-6)
    assert found.findings == []


def test_same_answer_to_all_is_found(server: Server) -> None:
    server.answer = answer(RECORDED)

    assert ask(server).findings == ["9 different requests are answered by the same actions"]


def test_held_answers_say_nothing(server: Server) -> None:
    server.answer = answer(RECORDED, safety={"status": "held", "violations": []})

    found = ask(server)

    assert (found.requests, found.findings) == ([], [])


def test_example_answered_otherwise_is_found(server: Server) -> None:
    server.answers = iter([answer([[-0.5, 1.0]] * 3), *(answer([[0.1 * i, 1]] * 3) for i in range(COUNT))])

    (finding,) = ask(server).findings

    assert finding.startswith("the archived example is answered otherwise: off by ")


def test_wrong_form_is_found_and_a_refusal_too(server: Server) -> None:
    server.answers = iter([answer(RECORDED[:2]), *(answer([[0.1 * i, 1]] * 3) for i in range(COUNT))])

    assert ask(server).findings == ["shape: actions have shape [2, 2], expected [3, 2]"]
    server.answers, server.status = None, 503
    server.answer = '{"error": {"code": "policy_failed", "message": "no"}}'
    assert ask(server).findings == ["refused: 503 policy_failed: no"] * (COUNT + 1)


def test_nothing_is_known_of_a_server_that_lets_nobody_in(server: Server) -> None:
    server.status, server.answer = 401, '{"error": {"code": "unauthorized", "message": "send your API key"}}'

    with pytest.raises(NotAsked, match="lets nobody in: 401 unauthorized: send your API key"):
        ask(server)
    with pytest.raises(NotAsked, match=r"no answer from http://127\.0\.0\.1:9/"):
        known.ask("http://127.0.0.1:9/", NOTHING, WITH_EXAMPLE, seed=0)


@pytest.mark.parametrize(("off", "right"), [(0.0, True), (0.005, True), (0.4, False)])
def test_answer_under_load_is_held_against_the_known_one(off: float, *, right: bool) -> None:
    request = known.Request({}, {}, [[0.1, 1.0], [0.2, 1.0], [0.3, 1.0]])
    asked = Known([request], [0.2, 0.1], 0.1, [])
    chunk = answers.read(answer([[x + off, grip] for x, grip in request.actions]).encode())

    if right:
        asked.check(chunk, request)
    else:
        with pytest.raises(answers.WrongAnswer, match=r"off by 1 times the spread"):
            asked.check(chunk, request)


def test_what_is_written_for_the_processes_is_read(tmp_path: Path) -> None:
    asked = Known([known.Request({"image": b"\xff"}, {"seed": 1}, RECORDED)], [0.2, 0.1], 0.1, ["a"])

    assert Known.read(asked.write(tmp_path / "known")) == asked
