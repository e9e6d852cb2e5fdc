"""Several requests in one body, and their answers: how the gate hands a whole batch to a worker at once.

TorchServe is asked once a batch instead of once a request, which is what its front end charges for.
"""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from vla_runtime import wire
from vla_runtime.errors import Later, MalformedBody, RequestError
from vla_runtime.observation import Row

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/vnd.vla-serve.batch"
# The body is the name of a file, which holds a batch, in the folder that the variable names.
BY_NAME = "application/vnd.vla-serve.batch-file"
VARIABLE = "VLA_SHARED_MEMORY"
NAME = re.compile(rb"[0-9]{1,20}")


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
    """One answer, serialised; 103: to be asked for by its ticket, in so many ms; 102: to be sent anew."""

    status: int
    content_type: str
    request_id: str
    body: bytes


def read(body: bytes | bytearray, content_type: str) -> list[Joined]:
    """Return the requests of a batch, sent as `content_type`.

    Raises:
        MalformedBody: it is none, or its file is gone.
    """
    if content_type == MEDIA_TYPE:
        return split(body)
    if not NAME.fullmatch(body):
        raise MalformedBody(None, "the body is not the name of a batch")
    file = Path(os.environ[VARIABLE]) / body.decode()
    try:
        return split(file.read_bytes())
    except OSError as error:
        raise MalformedBody(None, "the batch is gone") from error


def split(body: bytes | bytearray) -> list[Joined]:
    """Take a batch apart.

    Raises:
        MalformedBody: it is none.
    """
    try:
        return msgspec.msgpack.decode(body, type=list[Joined])
    except msgspec.DecodeError as error:
        raise MalformedBody(None, "the body is not a batch of requests") from error


def is_batch(content_type: str) -> bool:
    """Whether a body of this type is a batch, or the name of one where such files are known."""
    return content_type == MEDIA_TYPE or (content_type == BY_NAME and bool(os.environ.get(VARIABLE)))


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
        return Reply(body.status, "", request.name, b"%d" % body.left_ms)
    status = 200
    if isinstance(body, RequestError):
        logger.info("request %s: %d %s", request.name, body.status, body.code)
        status, body = body.status, body.body()
    body["request_id"] = request.name
    reply, media_type = wire.serialise(body, request.accept)
    return Reply(status, media_type, request.name, reply)
