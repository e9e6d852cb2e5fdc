"""What becomes of a request that gets no chunk: its exception, and that it is asked once."""

import asyncio
import json
import socket
from typing import Any

import pytest
from policy_server import PICTURE, Server, running_server

from vla_client import (
    AccessDenied,
    AsyncPolicy,
    DeadlineExpired,
    InvalidAnswer,
    Observation,
    Overloaded,
    PolicyError,
    PolicyFailure,
    PolicyUnavailable,
    RemotePolicy,
    RequestRefused,
)
from vla_client.errors import kind_of


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "any", AccessDenied),
        (403, "any", AccessDenied),
        *((400, code, AccessDenied) for code in ("no_certificate", "bad_certificate", "tls_required")),
        (429, "any", Overloaded),
        (503, "any", Overloaded),
        *((503, code, PolicyError) for code in ("unsafe_action", "policy_failed")),
        # The codes of a policy mean nothing beside another status.
        (429, "unsafe_action", Overloaded),
        (504, "any", DeadlineExpired),
        *((status, "any", RequestRefused) for status in (400, 402, 404, 409, 413, 422, 426, 430, 499)),
        *((status, "any", PolicyError) for status in (302, 399, 408, 425, 500, 501, 502, 505)),
    ],
)
def test_a_status_and_a_code_make_an_exception(status: int, code: str, kind: type[PolicyError]) -> None:
    assert kind_of(status, code) is kind


def test_only_what_has_to_be_changed_is_final() -> None:
    assert {kind for kind in (RequestRefused, AccessDenied) if kind.final} == {RequestRefused, AccessDenied}
    passing = (PolicyFailure, PolicyError, Overloaded, DeadlineExpired, PolicyUnavailable, InvalidAnswer)
    assert not any(kind.final for kind in passing)


@pytest.mark.parametrize(
    ("field", "request_id", "shown"),
    [
        ("state", "r-1", "422 c, field 'state': m [request r-1]"),
        ("state", None, "422 c, field 'state': m"),
        (None, "r-1", "422 c: m [request r-1]"),
        (None, None, "422 c: m"),
    ],
)
def test_a_refusal_says_its_parts(field: str | None, request_id: str | None, shown: str) -> None:
    error = PolicyError(422, "c", field, "m", request_id=request_id, retry_after_s=2.0)

    assert str(error) == shown
    assert (error.status, error.code, error.field, error.message) == (422, "c", field, "m")
    assert (error.request_id, error.retry_after_s) == (request_id, 2.0)


OBSERVATION = Observation(PICTURE, "go")


@pytest.fixture
def server():
    with running_server() as running:
        yield running


def refusal(server: Server) -> PolicyError:
    with RemotePolicy(server.url) as policy, pytest.raises(PolicyError) as caught:
        policy.infer(OBSERVATION)
    return caught.value


@pytest.mark.parametrize(
    ("header", "wait_s"), [("2", 2.0), ("0", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", None), ("", None)]
)
def test_how_long_to_wait_is_read(server: Server, header: str, wait_s: float | None) -> None:
    server.status, server.more = 503, {"Retry-After": header}

    assert refusal(server).retry_after_s == wait_s


def test_the_servers_own_id_of_a_request_comes_first(server: Server) -> None:
    server.status, server.more = 500, {"X-Request-Id": "of the header"}
    server.answer = json.dumps({"message": "m", "request_id": "of the body"})
    assert refusal(server).request_id == "of the body"
    server.answer = "no JSON"
    assert refusal(server).request_id == "of the header"


def test_a_redirection_is_not_followed(server: Server) -> None:
    server.status, server.answer, server.more = 307, "elsewhere", {"Location": f"{server.url}/elsewhere"}

    assert str(refusal(server)) == "307 http_307: elsewhere"
    assert len(server.requests) == 1


def test_a_refused_connection_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refused(_socket: socket.socket, address: Any) -> None:
        tried.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket.socket, "connect", refused)
    with RemotePolicy("http://127.0.0.1:1") as policy, pytest.raises(PolicyUnavailable):
        policy.infer(OBSERVATION)
    assert tried == [("127.0.0.1", 1)]


def test_the_second_try_has_what_the_first_left_of_the_timeout(server: Server) -> None:
    with RemotePolicy(server.url, timeout_s=1.0) as policy:
        policy.infer(OBSERVATION)
        server.wait_s, server.hang_up_on = 0.7, {2}
        with pytest.raises(PolicyUnavailable, match=r" within 1\.0 s: "):
            policy.infer(OBSERVATION)
    assert len(server.requests) == 3


def test_little_time_is_enough_for_a_second_try(server: Server) -> None:
    with RemotePolicy(server.url, timeout_s=0.8) as policy:
        policy.infer(OBSERVATION)
        server.hang_up_on = {2}
        assert policy.infer(OBSERVATION).request_id == "r-1"


def test_a_policy_that_is_left_closes_its_connections(server: Server) -> None:
    with RemotePolicy(server.url) as policy:
        policy.infer(OBSERVATION)
    policy.infer(OBSERVATION)
    policy.close()
    assert len(server.connections) == 2


def test_so_does_one_for_asyncio(server: Server) -> None:
    remote = RemotePolicy(server.url)

    async def ask() -> None:
        async with AsyncPolicy(remote) as policy:
            await policy.infer(OBSERVATION)

    asyncio.run(ask())
    remote.infer(OBSERVATION)
    remote.close()
    assert len(server.connections) == 2
