"""How the client reaches a deployment: headers, base path, threads, asyncio; what each refusal becomes."""

import asyncio
import json
import threading

import msgspec
import numpy as np
import pytest
from policy_server import ANSWER, MSGPACK, PICTURE, running_server

from vla_client import (
    AccessDenied,
    AsyncPolicy,
    DeadlineExpired,
    Observation,
    Overloaded,
    PolicyError,
    PolicyUnavailable,
    RemotePolicy,
    RequestRefused,
)
from vla_client.__main__ import main

OBSERVATION = Observation(PICTURE, "go")


@pytest.fixture
def server():
    with running_server() as running:
        yield running


def test_key_headers_and_base_path_are_sent(server):
    with RemotePolicy(server.url + "/robots/", api_key="secret", headers={"X-Site": "lab"}) as policy:
        policy.infer(OBSERVATION)
    path, headers, _ = server.requests[0]
    assert path == "/robots/predictions/vla"
    assert (headers["x-api-key"], headers["x-site"]) == ("secret", "lab")


def test_command_line_sends_them_too(server, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8")
    options = ["--url", server.url, "--api-key", "secret", "--header", "X-Site: lab"]
    assert main([str(tmp_path / "a.jpg"), "go", *options]) == 0
    headers = server.requests[0][1]
    assert (headers["x-api-key"], headers["x-site"]) == ("secret", "lab")


@pytest.mark.parametrize(
    ("status", "code", "kind", "final"),
    [
        (400, "missing_field", RequestRefused, True),
        (404, "not_found", RequestRefused, True),
        (422, "invalid_value", RequestRefused, True),
        (401, "unauthorized", AccessDenied, True),
        (400, "no_certificate", AccessDenied, True),
        (408, "slow_request", PolicyError, False),
        (429, "overloaded", Overloaded, False),
        (503, "unavailable", Overloaded, False),
        (503, "unsafe_action", PolicyError, False),
        (500, "server_error", PolicyError, False),
        (504, "deadline_expired", DeadlineExpired, False),
    ],
)
def test_each_refusal_has_its_exception(server, status, code, kind, final):
    server.status = status
    server.answer = json.dumps({"error": {"code": code, "field": None, "message": "m"}, "request_id": "r-9"})
    with RemotePolicy(server.url) as policy, pytest.raises(PolicyError) as caught:
        policy.infer(OBSERVATION)
    assert (type(caught.value), caught.value.final, caught.value.request_id) == (kind, final, "r-9")
    assert str(caught.value) == f"{status} {code}: m [request r-9]"


def test_each_request_has_an_id_of_its_own(server):
    with RemotePolicy(server.url, timeout_s=0.3) as policy:
        policy.infer(OBSERVATION)
        server.wait_s = 0.6
        with pytest.raises(PolicyUnavailable) as caught:
            policy.infer(OBSERVATION)
    first, second = (headers["x-request-id"] for _, headers, _ in server.requests)
    assert first != second
    assert caught.value.request_id == second


def test_raw_pixels_travel_as_they_are(server):
    with RemotePolicy(server.url, encoding="raw") as policy:
        policy.infer(OBSERVATION)
    _, headers, fields = server.requests[0]
    assert headers["content-type"] == MSGPACK
    assert fields["image"] == {"shape": [24, 32, 3], "dtype": "uint8", "data": PICTURE.tobytes()}


def test_pictures_of_a_history_are_numbered_from_the_oldest(server):
    server.answer, server.kind = msgspec.msgpack.encode(ANSWER), MSGPACK
    with RemotePolicy(server.url, encoding="raw") as policy:
        policy.infer(
            Observation({"front": [PICTURE, PICTURE[:8]]}, "", np.array([[1, 2], [3, 4]], np.float32))
        )
    _, _, fields = server.requests[0]
    assert sorted(fields) == ["image.front.0", "image.front.1", "state"]  # and no command where there is none
    assert fields["image.front.1"]["shape"] == [8, 32, 3]
    assert fields["state"] == [[1.0, 2.0], [3.0, 4.0]]


def test_threads_share_a_pool_and_no_more_connections_than_it_has(server):
    with RemotePolicy(server.url, timeout_s=10, connections=3) as policy:
        threads = [threading.Thread(target=policy.infer, args=(OBSERVATION,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.requests) == 12
    assert len(server.connections) <= 3


def test_a_busy_pool_says_so(server):
    server.wait_s = 1.5
    failures = []

    def ask():
        try:
            policy.infer(OBSERVATION)
        except PolicyUnavailable as error:
            failures.append(str(error))

    with RemotePolicy(server.url, timeout_s=0.5, connections=1) as policy:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    busy = f"all 1 connections to {server.url}/predictions/vla were busy for 0.5 s: raise connections, "
    assert busy + "or ask less often" in failures


def test_asyncio_asks_many_at_once(server):
    server.wait_s = 0.3

    async def ask():
        async with AsyncPolicy(RemotePolicy(server.url, timeout_s=10, connections=6)) as policy:
            return await asyncio.gather(*(policy.infer(OBSERVATION) for _ in range(6)))

    loop = asyncio.new_event_loop()
    begin_s = loop.time()
    chunks = loop.run_until_complete(ask())
    assert loop.time() - begin_s < 1.2  # one after another takes 1.8
    loop.close()
    assert [chunk.request_id for chunk in chunks] == ["r-1"] * 6


def test_asyncio_raises_as_the_other_does(server):
    server.status, server.answer = (
        422,
        '{"error": {"code": "invalid_value", "field": "state", "message": "m"}}',
    )

    async def ask():
        async with AsyncPolicy(RemotePolicy(server.url)) as policy:
            await policy.infer(OBSERVATION)

    with pytest.raises(RequestRefused, match=r"^422 invalid_value, field 'state': m$"):
        asyncio.run(ask())
