"""The client against a real HTTP server that answers as the contract says, or as it does not."""

import io
import json
import re
import socket
import threading
import time

import msgspec
import numpy as np
import PIL.Image
import pytest
from policy_server import ANSWER, MSGPACK, PICTURE, Server, running_server

from vla_client import (
    ActionChunk,
    ChunkPlayer,
    InvalidAnswer,
    Observation,
    PolicyError,
    PolicyUnavailable,
    RemotePolicy,
    SafetyReport,
)


@pytest.fixture
def server():
    with running_server() as running:
        yield running


@pytest.fixture
def policy(server):
    with RemotePolicy(server.url, timeout_s=2.0) as remote:
        yield remote


OBSERVATION = Observation(PICTURE, "lift the red block", [0.1, 0.2], seed=3)


def test_answer_becomes_a_chunk(policy):
    chunk = policy.infer(OBSERVATION)
    assert chunk.actions.dtype == np.float32
    np.testing.assert_array_equal(chunk.actions, np.asarray(ANSWER["actions"], np.float32))
    assert chunk.action_names == ("x", "y", "grip")
    assert (chunk.control_hz, chunk.confidence) == (10.0, 0.97)
    assert chunk.safety == SafetyReport("clamped", ("x exceeds its limit by 0.1 m",))
    assert chunk.timing_ms == {"queue": 1.0, "inference": 4.5, "batch_size": 4}
    assert (chunk.policy, chunk.version, chunk.request_id) == ("tabletop", "1.0", "r-1")


def test_absent_confidence_is_none(server, policy):
    server.answer = json.dumps({**ANSWER, "confidence": None})
    assert policy.infer(OBSERVATION).confidence is None
    server.answer = json.dumps({name: value for name, value in ANSWER.items() if name != "confidence"})
    assert policy.infer(OBSERVATION).confidence is None


def test_request_has_the_contracts_fields(server, policy):
    state = np.array([0.1, -2.0], np.float32)
    policy.infer(Observation(PICTURE, "größer, bitte", state, seed=7, deadline_ms=80))
    path, headers, fields = server.requests[0]
    assert path == "/predictions/vla"
    assert headers["accept"] == "application/json"
    assert fields["command"] == (None, "größer, bitte".encode())
    assert np.float32(json.loads(fields["state"][1])).tolist() == state.tolist()
    assert (fields["seed"][1], fields["deadline_ms"][1]) == (b"7", b"80")
    kind, data = fields["image"]
    assert kind == "image/jpeg"
    assert PIL.Image.open(io.BytesIO(data)).size == (32, 24)


def test_absent_fields_are_not_sent(server, policy):
    policy.infer(Observation(PICTURE, "go"))
    _, headers, fields = server.requests[0]
    assert sorted(fields) == ["command", "image"]
    assert "x-request-start" not in headers


def test_deadline_sends_the_time_of_the_request(server, policy):
    before = time.time() * 1000
    policy.infer(Observation(PICTURE, "go", deadline_ms=50))
    after = time.time() * 1000
    sent = re.fullmatch(r"t=(\d+)", server.requests[0][1]["x-request-start"])
    assert sent
    assert before - 1 <= int(sent[1]) <= after + 1


def test_png_is_lossless_and_bytes_are_sent_as_they_are(server):
    with RemotePolicy(server.url, model="vla/1.0", encoding="png") as policy:
        policy.infer(Observation({"front": PICTURE, "wrist": b"RIFF1234WEBPrest"}, "go"))
    path, _, fields = server.requests[0]
    assert path == "/predictions/vla/1.0"
    assert sorted(fields) == ["command", "image.front", "image.wrist"]
    kind, data = fields["image.front"]
    assert kind == "image/png"
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(data))), PICTURE)
    assert fields["image.wrist"] == ("image/webp", b"RIFF1234WEBPrest")


def test_one_connection_serves_many_requests(server, policy):
    for _ in range(5):
        policy.infer(OBSERVATION)
    assert len(server.requests) == 5
    assert len(server.connections) == 1


def test_a_closed_connection_is_opened_anew(server, policy):
    policy.infer(OBSERVATION)
    policy.close()
    policy.infer(OBSERVATION)
    assert len(server.connections) == 2


def test_msgpack_is_one_raw_body_both_ways(server):
    server.answer, server.kind = msgspec.msgpack.encode(ANSWER), MSGPACK
    with RemotePolicy(server.url, body="msgpack") as policy:
        chunk = policy.infer(Observation({"front": PICTURE}, "größer", [0.5], seed=7, deadline_ms=80))
    _, headers, fields = server.requests[0]
    assert (headers["content-type"], headers["accept"]) == (MSGPACK, MSGPACK)
    image = fields.pop("image.front")
    assert PIL.Image.open(io.BytesIO(image)).format == "JPEG"
    assert fields == {"command": "größer", "state": [0.5], "seed": 7, "deadline_ms": 80}
    np.testing.assert_array_equal(chunk.actions, np.asarray(ANSWER["actions"], np.float32))


def test_an_error_in_msgpack_is_read(server):
    error = {"error": {"code": "bad_image", "field": "image", "message": "not a picture"}}
    server.status, server.answer, server.kind = 400, msgspec.msgpack.encode(error), MSGPACK
    with (
        RemotePolicy(server.url, body="msgpack") as policy,
        pytest.raises(PolicyError, match=r"^400 bad_image, field 'image': not a picture$"),
    ):
        policy.infer(OBSERVATION)


def test_a_picture_is_cut_to_the_policys_size(server):
    colours = np.repeat(np.array([[0], [60], [120], [180]], np.uint8), 10, 0)  # four stripes of 10 columns
    wide = np.broadcast_to(colours[None, :, :], (20, 40, 3)).copy()
    with RemotePolicy(server.url, encoding="png", size=10) as policy:
        policy.infer(Observation(wide, "go"))
        policy.infer(Observation(wide[:8, :8], "go"))
    large, small = (np.asarray(PIL.Image.open(io.BytesIO(sent[2]["image"][1]))) for sent in server.requests)
    assert (large.shape, small.shape) == ((10, 10, 3), (8, 8, 3))
    np.testing.assert_allclose(large[5, [1, 8], 0], [60, 120], atol=1)  # the middle half is left
    np.testing.assert_array_equal(small, wide[:8, :8])


def test_a_kept_connection_that_was_closed_is_opened_anew_at_once(server, policy):
    server.hang_up_on = {2}
    policy.infer(OBSERVATION)
    assert policy.infer(OBSERVATION).request_id == "r-1"
    assert len(server.requests) == 3


@pytest.mark.parametrize(("hang_up_on", "answered", "requests"), [({1}, 0, 1), ({2, 3}, 1, 3)])
def test_a_fresh_connection_that_breaks_is_a_failure(server, policy, hang_up_on, answered, requests):
    server.hang_up_on = hang_up_on
    for _ in range(answered):
        policy.infer(OBSERVATION)
    with pytest.raises(PolicyUnavailable, match=r"Remote end closed connection without response"):
        policy.infer(OBSERVATION)
    assert len(server.requests) == requests


def test_a_timeout_is_not_repeated(server, policy):
    with RemotePolicy(server.url, timeout_s=0.2) as hasty:
        hasty.infer(OBSERVATION)
        server.wait_s = 0.4
        with pytest.raises(PolicyUnavailable, match=r" within 0\.2 s: "):
            hasty.infer(OBSERVATION)
    assert len(server.requests) == 2


def test_headers_and_body_leave_in_one_write(server, policy, monkeypatch):
    writes = []
    real = socket.socket.sendall
    client_thread = threading.get_ident()

    def counted(sock, data, *flags):
        if threading.get_ident() == client_thread:
            writes.append(len(data))
        return real(sock, data, *flags)

    monkeypatch.setattr(socket.socket, "sendall", counted)
    policy.infer(OBSERVATION)
    policy.infer(OBSERVATION)
    assert len(writes) == 2


@pytest.mark.parametrize(
    ("status", "code", "field", "message", "shown"),
    [
        (400, "bad_image", "image", "not a picture", "400 bad_image, field 'image': not a picture"),
        (422, "invalid_value", "state", "needs 4", "422 invalid_value, field 'state': needs 4"),
        (503, "unsafe_action", None, "outside its limits", "503 unsafe_action: outside its limits"),
        (504, "deadline_expired", "deadline_ms", "late", "504 deadline_expired, field 'deadline_ms': late"),
    ],
)
def test_errors_of_the_policy(server, policy, status, code, field, message, shown):  # noqa: PLR0917
    server.status = status
    server.answer = json.dumps({"error": {"code": code, "field": field, "message": message}})
    with pytest.raises(PolicyError) as caught:
        policy.infer(OBSERVATION)
    error = caught.value
    assert (error.status, error.code, error.field, error.message) == (status, code, field, message)
    assert str(error) == shown


def test_errors_of_torchserves_front_end(server, policy):
    server.status = 404
    server.answer = json.dumps(
        {"code": 404, "type": "ModelNotFoundException", "message": "Model not found: vla"}
    )
    with pytest.raises(PolicyError, match=r"^404 ModelNotFoundException: Model not found: vla$"):
        policy.infer(OBSERVATION)


@pytest.mark.parametrize(
    ("status", "answer", "text"),
    [
        (413, "", "413 http_413: Request Entity Too Large from {url}/predictions/vla"),
        (502, "<h1>Bad Gateway</h1>", "502 http_502: <h1>Bad Gateway</h1>"),
        (302, "elsewhere", "302 http_302: elsewhere"),
    ],
)
def test_errors_of_a_proxy(server, policy, status, answer, text):
    server.status, server.answer, server.kind = status, answer, "text/html"
    with pytest.raises(PolicyError) as caught:
        policy.infer(OBSERVATION)
    assert str(caught.value) == text.format(url=server.url)


def test_timeout(server):
    server.wait_s = 0.5
    with (
        RemotePolicy(server.url, timeout_s=0.1) as policy,
        pytest.raises(PolicyUnavailable) as caught,
    ):
        policy.infer(OBSERVATION)
    assert str(caught.value) == (
        f"no answer from {server.url}/predictions/vla within 0.1 s: is the server overloaded, "
        "or timeout_s too short?"
    )


def test_connection_refused():
    with Server() as closed:
        url = closed.url
    with RemotePolicy(url) as policy, pytest.raises(PolicyUnavailable) as caught:
        policy.infer(OBSERVATION)
    assert str(caught.value) == (
        f"no connection to {url}/predictions/vla: is the server running there? "
        "([Errno 111] Connection refused)"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": [[1.0, 2.0]]}, "actions have shape [1, 2], expected [T, 3] with T >= 1, for x, y, grip"),
        ({"actions": [1.0, 2.0, 3.0]}, "actions have shape [3], expected [T, 3] with T >= 1, for x, y, grip"),
        ({"actions": []}, "actions have shape [0], expected [T, 3] with T >= 1, for x, y, grip"),
        ({"actions": [[1, 2, float("nan")]]}, "actions hold a non-finite number at step 0, grip"),
        ({"actions": [[0, 0, 0], [0, 1e39, 0]]}, "actions hold a non-finite number at step 1, y"),
        ({"actions": [[1, None, 2]]}, "actions are no table of numbers: they hold something else"),
        ({"actions": [["1", "2", "3"]]}, "actions are no table of numbers: they hold something else"),
        ({"action_names": "xyz"}, "action_names must be a list, got str"),
        ({"control_hz": 0}, "control_hz must be finite and above 0, got 0"),
        ({"control_hz": "10"}, "control_hz must be a number, got str"),
        ({"confidence": float("inf")}, "confidence must be from 0 to 1, got inf"),
        ({"confidence": 1.5}, "confidence must be from 0 to 1, got 1.5"),
        ({"safety": {"status": "fine"}}, "safety.status is 'fine', expected one of ok, clamped, held"),
        ({"safety": {}}, "the answer has no safety.status; it has: nothing"),
    ],
)
def test_a_wrong_answer_never_reaches_the_robot(server, policy, change, message):
    server.answer = json.dumps({**ANSWER, **change})
    with pytest.raises(InvalidAnswer) as caught:
        policy.infer(OBSERVATION)
    assert str(caught.value) == message


def test_ragged_actions_are_refused(server, policy):
    server.answer = json.dumps({**ANSWER, "actions": [[1, 2, 3], [1]]})
    with pytest.raises(InvalidAnswer, match=r"^actions are no table of numbers: "):
        policy.infer(OBSERVATION)


def test_an_answer_that_is_no_json_is_refused(server, policy):
    server.answer, server.kind = "<html>hello</html>", "text/html"
    with pytest.raises(InvalidAnswer, match=r"is not JSON \(text/html\)"):
        policy.infer(OBSERVATION)


def test_an_answer_of_another_server_is_refused():
    with pytest.raises(InvalidAnswer, match=r"^the answer has no action_names; it has: hello$"):
        ActionChunk.from_answer({"hello": 1})
    with pytest.raises(InvalidAnswer, match=r"^the answer must be a dict, got list$"):
        ActionChunk.from_answer([1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8080"}, "url must begin with http:// or https://, got '127.0.0.1:8080'"),
        ({"timeout_s": 0}, "timeout_s must be positive, got 0"),
        ({"encoding": "gif"}, "encoding must be one of jpeg, png, raw, got 'gif'"),
        ({"body": "xml"}, "body must be one of multipart, msgpack, got 'xml'"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"connections": 0}, "connections must be at least 1, got 0"),
        ({"encoding": "raw", "body": "multipart"}, "raw pixels need body='msgpack', got 'multipart'"),
        ({"ca": "nowhere/ca.crt"}, "no certificate file at nowhere/ca.crt"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RemotePolicy(**{"url": "http://127.0.0.1:8080", **options})


def test_player_plays_a_served_policy(server, policy):
    player = ChunkPlayer(policy, replan=2)
    played = [player.action(lambda: OBSERVATION) for _ in range(4)]
    np.testing.assert_array_equal(played, np.float32(ANSWER["actions"] * 2))
    assert len(server.requests) == 2
