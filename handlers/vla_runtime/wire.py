"""The bodies of the HTTP contract, whatever server carries them: bytes to rows, answers to bytes."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from vla_runtime import record
from vla_runtime.actions import ActionChunk
from vla_runtime.errors import MalformedBody, RequestError, TooLarge, UnsupportedMediaType
from vla_runtime.explanation import box_of, overlay
from vla_runtime.observation import Row
from vla_runtime.policy import Answer
from vla_runtime.safety import SafetyReport
from vla_runtime.spec import PolicySpec

JSON = "application/json"
MSGPACK = "application/msgpack"
MULTIPART = "multipart/form-data"
PNG = "image/png"
# The answer's header with the request's id: TorchServe overwrites `X-Request-Id` with its own.
REQUEST_ID = "Request-Id"
# Most that the pictures of a described example have [bytes].
MAX_EXAMPLE = 1 << 20
# Longest request id [characters].
MAX_REQUEST_ID = 64
# Most values in a JSON body. Millions of small ones took seconds to read, and no policy takes many.
MAX_VALUES = 10_000
# Longest MessagePack value that is neither text nor bytes [bytes].
MAX_NUMBERS = 16_384


def read(data: Mapping[str, object], content_type: str) -> Row | RequestError:
    """Return a request's fields.

    Args:
        data: the parts of a multipart request, or one raw or already parsed `body`
        content_type: the request's header
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == MULTIPART:
        return data or MalformedBody(None, "the multipart body has no readable part")
    if media_type not in (JSON, MSGPACK):
        got = media_type[:64] or "none"
        return UnsupportedMediaType(None, f"send {MULTIPART}, {JSON} or {MSGPACK}; got {got}")
    body = data.get("body")
    if isinstance(body, bytes | bytearray):
        try:
            body = _parsed(body, media_type)
        except RequestError as error:
            return error
        except msgspec.ValidationError:
            body = None
        except (ValueError, RecursionError):
            return MalformedBody(None, f"the body is not {media_type}")
    if not isinstance(body, dict) or not all(isinstance(name, str) for name in body):
        return MalformedBody(None, f"the body must be an object of fields in {media_type}")
    return body


def _parsed(body: bytes | bytearray, media_type: str) -> object:
    """Read a body; a field that is there twice is refused, since either may be the one that was meant."""
    if media_type == MSGPACK:
        return _unpacked(body)
    # Nested ones need no comma between them.
    if body.count(b",") + body.count(b"[") + body.count(b"{") >= MAX_VALUES:
        raise TooLarge(None, f"the body has more than {MAX_VALUES} values")
    return json.loads(body, object_pairs_hook=_distinct)


def _unpacked(body: bytes | bytearray) -> dict[str, object]:
    """Read a MessagePack map, no value of which is unpacked before its length is known."""
    raw = msgspec.msgpack.decode(body, type=dict[str, msgspec.Raw])
    if len(raw) > MAX_VALUES:
        raise TooLarge(None, f"the body has more than {MAX_VALUES} values")
    if len(raw) < _pairs(body):
        raise MalformedBody(None, "a field is there twice")
    return {name: _value(name, value) for name, value in raw.items()}


def _value(name: str, raw: msgspec.Raw) -> object:
    """Unpack one field: text or bytes, a map of such (raw pixels), or few numbers."""
    packed = memoryview(raw)
    if packed.nbytes <= MAX_NUMBERS or _is_plain(packed[0]):
        return msgspec.msgpack.decode(raw)
    if not _is_map(packed[0]):
        raise TooLarge(name[:64], f"more than {MAX_NUMBERS} bytes that are neither text nor bytes")
    parts = msgspec.msgpack.decode(raw, type=dict[str, msgspec.Raw])
    for part in parts.values():
        packed = memoryview(part)
        if packed.nbytes > MAX_NUMBERS and not _is_plain(packed[0]):
            raise TooLarge(name[:64], f"more than {MAX_NUMBERS} bytes that are neither text nor bytes")
    return {key: msgspec.msgpack.decode(part) for key, part in parts.items()}


def _is_plain(first: int) -> bool:
    """Whether a MessagePack value that begins so is text or bytes."""
    return 0xA0 <= first <= 0xBF or 0xC4 <= first <= 0xC6 or 0xD9 <= first <= 0xDB


def _is_map(first: int) -> bool:
    return 0x80 <= first <= 0x8F or first in (0xDE, 0xDF)


def _distinct(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, value in pairs:
        if name in fields:
            raise MalformedBody(name[:64], "is there twice")
        fields[name] = value
    return fields


def _pairs(body: bytes | bytearray) -> int:
    """Return how many pairs a MessagePack map says that it has: fixmap, map 16 or map 32."""
    if body[0] & 0xF0 == 0x80:
        return body[0] & 0x0F
    return int.from_bytes(body[1:3] if body[0] == 0xDE else body[1:5], "big")


def description(spec: PolicySpec, example: Row) -> dict[str, Any]:
    """Return the body that describes a policy: its spec, and its example as a JSON request.

    An example of large pictures, which a management port need not carry, is left out.
    """
    body: dict[str, Any] = msgspec.to_builtins(spec)
    pictures = sum(len(value) for value in example.values() if isinstance(value, bytes))
    if pictures <= MAX_EXAMPLE:
        body["example_request"] = msgspec.to_builtins(example)  # bytes become base64
    return body


def request_id(sent: str, given: str | None) -> str:
    """Return what a request is called in the log and in its answer.

    Args:
        sent: the client's header `X-Request-Id`: its letters, digits and `._:/+=@-` are kept, 64 at most
        given: the server's own id, for a client that sent none
    """
    return re.sub(r"[^A-Za-z0-9._:/+=@-]", "", sent)[:MAX_REQUEST_ID] or given or "unknown"


def arrival(request_start: str, received_s: float) -> float:
    """Return when a request reached the host [s since the epoch].

    The server does not tell how long a request queued. A proxy or client does, in the customary header
    `X-Request-Start: t=<unix time>` in seconds or milliseconds; without it the queue counts as 0.
    """
    try:
        start = float(request_start.removeprefix("t="))
    except ValueError:
        return received_s
    start_s = start / 1000 if start > 1e11 else start
    return start_s if 0 < start_s < received_s else received_s


def answer_body(answer: Answer, spec: PolicySpec, queue_ms: float) -> dict[str, Any]:
    """Return the answer of `/predictions`; what it has no use for is left out."""
    chunk = answer.chunk
    extras = {"extras": chunk.extras} if chunk.extras else {}
    delays = {"delay": chunk.delay, "max_delay": spec.max_delay} if spec.max_delay else {}
    return {
        "actions": _actions(chunk),
        "action_names": chunk.space.names,
        "control_hz": chunk.space.control_hz,
        "confidence": chunk.confidence,
        "safety": _safety(chunk.safety),
        "timing_ms": {
            "queue": round(queue_ms, 3),
            **{stage: round(value, 3) for stage, value in answer.timing_ms.items()},
            "batch_size": answer.batch_size,
        },
        "policy": spec.name,
        "version": spec.version,
        **delays,
        **extras,
    }


def _safety(report: SafetyReport) -> dict[str, Any]:
    saturated = None if report.saturated is None else round(report.saturated, 4)
    return {"status": report.status, "violations": report.violations, "saturated": saturated}


def _actions(chunk: ActionChunk) -> list[Any]:
    """Return T lists of A numbers, or T symbolic actions, each with the probabilities of all names."""
    if chunk.probabilities is None:
        return _rounded(chunk.actions, 7)  # all digits that float32 holds
    names, indices = chunk.space.names, chunk.actions.tolist()
    rows = zip(indices, _rounded(chunk.probabilities, 7), strict=True)
    return [{"name": names[index], "index": index, "probabilities": row} for index, row in rows]


def _rounded(table: np.ndarray, digits: int) -> list[list[float]]:
    return [[float(f"{value:.{digits}g}") for value in row] for row in table.tolist()]


def explanation(answer: Answer, spec: PolicySpec, accept: str) -> dict[str, Any] | bytes:
    """Return the answer of `/explanations`: why the policy did that.

    Returns:
        the record of its decision, or a PNG picture of it where the client asks for one
    """
    chunk, inputs = answer.chunk, answer.inputs
    assert inputs is not None, "an answer of `Policy.infer` has them"
    if PNG in accept:
        said = f"{spec.name} {spec.version}. {record.sentence(chunk, spec.artifact.extras)}"
        return overlay(record.pictures(inputs, spec), chunk.attention, box_of(chunk.extras), said)
    body = record.record(chunk, inputs, spec)
    body |= {"limited": _safety(chunk.safety), "policy": spec.name, "version": spec.version}
    if chunk.attention is not None:
        maps = zip(spec.cameras, chunk.attention, strict=True)
        body["attention"] = {camera.name: _rounded(lines, 4) for camera, lines in maps}
    return body


def serialise(body: Mapping[str, object], accept: str) -> tuple[bytes, str]:
    """Return a body and its media type: msgpack where the client asks for it, else JSON."""
    if MSGPACK in accept:
        return msgspec.msgpack.encode(body), MSGPACK
    return msgspec.json.encode(body), JSON
