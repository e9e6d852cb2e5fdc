"""Several requests in one body, and their answers: how the gate hands a whole batch to a worker at once.

TorchServe is asked once a batch instead of once a request, which is what its front end charges for.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from vla_runtime import wire
from vla_runtime.errors import Later, MalformedBody, RequestError
from vla_runtime.observation import Row

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/vnd.vla-serve.batch"


class Joined(msgspec.Struct, array_like=True, frozen=True):
    """One request of a batch, as its client sent it."""

    content_type: str
    accept: str
    request_id: str
    # When it reached the host [s since the epoch].
    arrived_s: float
    body: bytes
    # By which the gate asks for it again; no other request has it.
    ticket: int
    # Whether a worker took it before: there is no body this time.
    again: bool = False


class Reply(msgspec.Struct, array_like=True, frozen=True):
    """One answer, serialised; 103: not ready yet, to be asked for by its ticket; 102: to be sent anew."""

    status: int
    content_type: str
    request_id: str
    body: bytes


def split(body: bytes | bytearray) -> list[Joined]:
    """Take a batch apart.

    Raises:
        MalformedBody: it is none.
    """
    try:
        return msgspec.msgpack.decode(body, type=list[Joined])
    except msgspec.DecodeError as error:
        raise MalformedBody(None, "the body is not a batch of requests") from error


def join(replies: Sequence[Reply]) -> bytes:
    """Return the answers of one batch as one body."""
    return msgspec.msgpack.encode(replies)


@dataclass(frozen=True)
class Request:
    """One client's request."""

    # None: that of its ticket.
    row: Row | RequestError | None
    accept: str
    # What it is called in the log and in its answer.
    name: str
    # When it reached the host [s since the epoch].
    arrived_s: float
    what: str = "predict"
    # 0: it is not asked for again.
    ticket: int = 0

    @classmethod
    def of(cls, part: Joined, received_s: float) -> Self:
        """Read one of a batch."""
        row = None if part.again else wire.read({"body": part.body}, part.content_type)
        name = wire.request_id(part.request_id, None)
        return cls(row, part.accept, name, min(part.arrived_s, received_s), ticket=part.ticket)


@dataclass(frozen=True)
class Call:
    """What TorchServe takes for one request."""

    requests: Sequence[Request]
    # Whether it is a batch, whose answers go back in one body.
    joined: bool


def serialised(request: Request, body: dict[str, Any] | bytes | RequestError) -> Reply:
    """Return an answer, or an error, as bytes in the form that its client asked for."""
    if isinstance(body, bytes):
        return Reply(200, wire.PNG, request.name, body)
    if isinstance(body, Later):
        return Reply(body.status, "", request.name, b"")
    status = 200
    if isinstance(body, RequestError):
        logger.info("request %s: %d %s", request.name, body.status, body.code)
        status, body = body.status, body.body()
    body["request_id"] = request.name
    reply, media_type = wire.serialise(body, request.accept)
    return Reply(status, media_type, request.name, reply)
