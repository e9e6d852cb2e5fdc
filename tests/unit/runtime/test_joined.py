"""A batch in one body: what of it each request is, and how each is answered."""

import json

import msgspec
import pytest

from vla_runtime import joined
from vla_runtime.errors import Forgotten, InvalidValue, Later, MalformedBody, UnsupportedMediaType
from vla_runtime.joined import Call, Joined, Reply, Request, join, serialised, split

BODY = msgspec.msgpack.encode({"command": "go", "seed": 3})
PART = Joined("application/msgpack", "a/b", "one", 12.5, BODY, 7)


def test_a_batch_is_a_list_of_lists_in_messagepack() -> None:
    assert joined.MEDIA_TYPE == "application/vnd.vla-serve.batch"
    assert split(msgspec.msgpack.encode([["application/msgpack", "a/b", "one", 12.5, BODY, 7]])) == [PART]
    assert split(b"\x90") == []
    replies = [Reply(200, "a/b", "one", b"1"), Reply(504, "c/d", "two", b"")]
    assert msgspec.msgpack.decode(join(replies)) == [[200, "a/b", "one", b"1"], [504, "c/d", "two", b""]]


@pytest.mark.parametrize("body", [b"", b"\x90x", b"[]", b"\x91\x91\xa1x", b"\x80"])
def test_what_is_no_batch_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedBody, match=r"^the body is not a batch of requests$"):
        split(body)


def test_a_request_of_a_batch_is_what_its_client_sent() -> None:
    request = Request.of(PART, received_s=20.0)

    assert request == Request({"command": "go", "seed": 3}, "a/b", "one", 12.5, "predict", 7)
    # The gate's clock is the worker's: what comes from the future came now.
    assert Request.of(PART, received_s=12.0).arrived_s == 12.0
    assert Call([request], joined=True).requests == [request]
    assert Request({}, "", "", 0.0).ticket == 0
    later = Joined("application/msgpack", "a/b", "one", 12.5, b"", 7, again=True)
    assert Request.of(later, received_s=20.0) == Request(None, "a/b", "one", 12.5, "predict", 7)


def test_a_request_of_a_batch_fails_alone() -> None:
    other = Joined("text/plain", "", "", 0.0, b"x", 8)
    request = Request.of(other, received_s=1.0)

    assert isinstance(request.row, UnsupportedMediaType)
    assert (request.name, request.ticket) == ("unknown", 8)


def test_answers_are_written_as_their_clients_asked() -> None:
    request = Request({}, "", "one", 0.0)
    reply = serialised(request, {"actions": []})
    assert (reply.status, reply.content_type, reply.request_id) == (200, "application/json", "one")
    assert json.loads(reply.body) == {"actions": [], "request_id": "one"}

    packed = serialised(Request({}, "application/msgpack", "two", 0.0), {"actions": []})
    assert (packed.status, packed.content_type) == (200, "application/msgpack")
    assert msgspec.msgpack.decode(packed.body) == {"actions": [], "request_id": "two"}

    assert serialised(request, b"png") == Reply(200, "image/png", "one", b"png")
    assert serialised(request, Later(None, "no", 41.7)) == Reply(103, "", "one", b"41")
    assert serialised(request, Forgotten(None, "no")) == Reply(102, "", "one", b"0")


def test_errors_have_their_status_and_the_requests_name() -> None:
    reply = serialised(Request({}, "", "one", 0.0), InvalidValue("seed", "no"))

    assert (reply.status, reply.content_type, reply.request_id) == (422, "application/json", "one")
    error = {"code": "invalid_value", "field": "seed", "message": "no"}
    assert json.loads(reply.body) == {"error": error, "request_id": "one"}
