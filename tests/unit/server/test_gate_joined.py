"""A batch of the gate as bytes: a worker reads what the gate writes, and the gate what a worker does."""

import dataclasses

import msgspec

from server.gate.batch import MEDIA_TYPE, Reply, alone, apart, posted, together
from server.gate.refusal import Answer
from server.gate.routes import Prediction
from vla_runtime import joined

ASKED = Prediction("/predictions/vla", "application/msgpack", "a/b", "one", 12.5, b"\x00body", None)


def test_a_worker_reads_what_the_gate_writes() -> None:
    batch = together({7: ASKED, 8: dataclasses.replace(ASKED, request_id="")})
    head, _, body = posted("/predictions/vla", MEDIA_TYPE, batch).partition(b"\r\n\r\n")

    assert MEDIA_TYPE == joined.MEDIA_TYPE
    assert head.split(b"\r\n")[:3] == [
        b"POST /predictions/vla HTTP/1.1",
        b"Host: torchserve",
        b"Content-Type: " + MEDIA_TYPE.encode(),
    ]
    first, second = joined.split(body)
    assert first == joined.Joined("application/msgpack", "a/b", "one", 12.5, b"\x00body", 7)
    assert second.ticket == 8
    assert len(second.request_id) == 36


def test_the_gate_reads_what_a_worker_writes() -> None:
    replies = [joined.Reply(200, "a/b", "one", b"1"), joined.Reply(504, "c/d", "two", b"2")]
    answer = Answer(200, MEDIA_TYPE.encode(), joined.join(replies))

    assert apart(answer, 2) == [
        Answer(200, b"a/b", b"1", ((b"request-id", b"one"),)),
        Answer(504, b"c/d", b"2", ((b"request-id", b"two"),)),
    ]
    assert apart(answer, 3) == [None] * 3


def test_what_is_no_batch_answers_all() -> None:
    refused, broken = Answer(503, b"a/b", b"no"), Answer(200, MEDIA_TYPE.encode(), b"\xc1")

    assert apart(refused, 2) == [refused, refused]
    assert apart(None, 2) == [None, None]
    assert apart(broken, 2) == [None, None]
    assert msgspec.msgpack.encode([Reply(200, "a", "b", b"c")]) == joined.join(
        [joined.Reply(200, "a", "b", b"c")]
    )
    assert alone(ASKED).endswith(b"\r\nContent-Length: 5\r\n\r\n\x00body")
