"""Requests for TorchServe: one alone as it came, or a whole batch in one body, and the answers to it."""

from collections.abc import Container, Mapping, Sequence
from uuid import uuid4

import msgspec

from server.gate.refusal import Answer
from server.gate.routes import Prediction

# What a worker's handler reads as a batch.
MEDIA_TYPE = "application/vnd.vla-serve.batch"
# Statuses of a reply that is none yet: to be asked for by its ticket, or with all of the request. Its body
# says when it may be ready [ms].
LATER, ANEW = 103, 102


class Joined(msgspec.Struct, array_like=True, frozen=True):
    """One request of a batch."""

    content_type: str
    accept: str
    request_id: str
    arrived_s: float
    body: bytes
    # By which it is asked for again.
    ticket: int
    # Whether the worker has its body already.
    again: bool = False


class Reply(msgspec.Struct, array_like=True, frozen=True):
    """The worker's answer to one of them."""

    status: int
    content_type: str
    request_id: str
    body: bytes


def alone(asked: Prediction) -> bytes:
    """Return one request as HTTP."""
    lines = {
        "X-Request-Start": f"t={asked.arrived_s:.6f}",
        "X-Request-Id": asked.request_id,
        "Content-Type": asked.content_type,
        "Accept": asked.accept,
    }
    return _written(asked.path, lines, asked.body)


def together(batch: Mapping[int, Prediction], known: Container[int] = ()) -> bytes:
    """Return requests of one path, by their tickets, in one body; those that are known without their own."""
    joined = [
        Joined(
            a.content_type,
            a.accept,
            a.request_id or str(uuid4()),
            a.arrived_s,
            b"" if ticket in known else a.body,
            ticket,
            ticket in known,
        )
        for ticket, a in batch.items()
    ]
    return msgspec.msgpack.encode(joined)


def posted(path: str, content_type: str, body: bytes) -> bytes:
    """Return a body as HTTP."""
    return _written(path, {"Content-Type": content_type}, body)


def apart(answer: Answer | None, count: int) -> Sequence[Answer | None]:
    """Return the answers to `count` requests that were asked together.

    What is no batch, such as an error of TorchServe's own, is the answer to each of them.
    """
    if answer is None or answer.kind != MEDIA_TYPE.encode():
        return [answer] * count
    try:
        replies = msgspec.msgpack.decode(answer.body, type=list[Reply])
    except msgspec.DecodeError:
        return [None] * count
    answers = [
        Answer(r.status, r.content_type.encode(), r.body, ((b"request-id", r.request_id.encode()),))
        for r in replies
    ]
    return answers if len(answers) == count else [None] * count


def _written(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items() if value]
    head = [f"POST {path} HTTP/1.1", "Host: torchserve", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode("latin-1") + body
