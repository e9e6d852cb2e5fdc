"""What may be asked, and what becomes of it: a request for TorchServe, or an answer of the gate's own."""

import json
import re
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass

from server.gate import form
from server.gate.head import Head
from server.gate.refusal import OVERLOADED, UNAVAILABLE, Answer, Refusal, expired, not_found, wrong_method

# TorchServe's own limit as well [bytes].
LARGEST_BODY = 4 << 20
MODEL = re.compile(r"/(predictions|explanations)/([A-Za-z0-9_.-]+)(/[A-Za-z0-9_.-]+)?")
# What the gate itself answers.
OWN = ("/health/live", "/health/ready", "/openapi.json")
# TorchServe's words for a full queue.
FULL = "has no worker to serve"


def model_of(path: str) -> str:
    """Return the name of the model that a path is of, empty where it is of none."""
    match = MODEL.fullmatch(path)
    return match[2] if match else ""


@dataclass(frozen=True)
class Prediction:
    """A request for a model, ready for TorchServe."""

    path: str
    content_type: str
    accept: str
    # The client's own id; empty without one.
    request_id: str
    # When its first byte came [s since the epoch].
    arrived_s: float
    body: bytes
    # How long the client waits for the answer from the arrival on [ms]; None: as long as the gate does.
    deadline_ms: float | None


def is_model(path: str) -> bool:
    """Whether a path is of a model."""
    return MODEL.fullmatch(path) is not None


def check(head: Head) -> None:
    """Refuse what its head alone forbids, before the body is read.

    Raises:
        Refusal: no such path, no such method, or a body that is too long.
    """
    if head.path in OWN:
        raise wrong_method("GET")
    if not is_model(head.path) and head.method != "HEAD":
        raise not_found()
    if head.method != "POST":
        raise wrong_method()


def prediction(head: Head, body: bytes, arrived_s: float, ours: Set[str]) -> Prediction:
    """Turn a request into one for TorchServe.

    Args:
        head: its head
        body: its whole body
        arrived_s: when its first byte came [s since the epoch]
        ours: names of the models whose workers read MessagePack: a form is handed to them as such, so that
            TorchServe's own reader of forms, slow and easily exhausted, never sees one

    Raises:
        Refusal: the body is malformed, or of an unknown kind, or the deadline is over already.
    """
    match = MODEL.fullmatch(head.path)
    assert match is not None
    kind, parameters = form.media_type(head.headers.get("content-type", ""))
    found = form.fields(body, parameters.get("boundary", "")) if kind == form.MULTIPART else None
    if kind == form.URLENCODED:
        form.count_urlencoded(body)
    deadline_ms = form.deadline_ms(kind, body, found)
    content_type = head.headers.get("content-type", "")
    if match[2] in ours:
        if found is not None:
            kind, body = form.MSGPACK, form.to_msgpack(found)
        elif kind not in (form.JSON, form.MSGPACK):
            raise form.unsupported(kind)
        content_type = kind
    if deadline_ms is not None and (time.time() - arrived_s) * 1000 >= deadline_ms:
        raise expired(deadline_ms)
    accept = head.headers.get("accept", "")
    return Prediction(head.path, content_type, accept, head.request_id, arrived_s, body, deadline_ms)


def of_torchserve(answer: Answer | None) -> Answer | Refusal:
    """Return TorchServe's answer, or what becomes of an error of its own."""
    if answer is None:
        return UNAVAILABLE
    if answer.status < 400 or answer.body[:8] == b'{"error"' or (answer.body and not _torchserves(answer)):
        return answer
    text = answer.body.decode("utf-8", "replace")
    if answer.status == 503 and FULL in text:
        return OVERLOADED
    if answer.status == 404:
        return not_found()
    if answer.status < 500:
        return Refusal(answer.status, "bad_request", "TorchServe can't read this request")
    died = "Worker died" in text
    said = "Worker died while it had this request" if died else "the server failed on this request"
    return Refusal(answer.status, "server_error", said)


def _torchserves(answer: Answer) -> bool:
    """Whether an error is of TorchServe and not of the model."""
    try:
        body = json.loads(answer.body)
    except ValueError:
        return False
    return isinstance(body, Mapping) and {"code", "type", "message"} <= body.keys()
