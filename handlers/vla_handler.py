"""Adapts TorchServe to `Policy`: rows in, serialised answers out. The only file that imports `ts`.

TorchServe loads a handler file that defines exactly one class. Each row gets its own status through
`set_response_status(idx=...)`; raising from `handle` would fail its whole batch.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from ts.context import Context

from vla_runtime.errors import MalformedBody, RequestError, UnsupportedMediaType
from vla_runtime.observation import Row
from vla_runtime.policy import Answer, Policy

logger = logging.getLogger(__name__)

JSON = "application/json"
MSGPACK = "application/msgpack"
MULTIPART = "multipart/form-data"


class VlaHandler:
    """One worker's policy."""

    def __init__(self) -> None:
        self.initialized = False

    def initialize(self, context: Context) -> None:
        """Load the archive's policy, replay its example and warm every bucket before the worker is ready.

        Raises:
            SpecError: the archive is incomplete or answers its example differently.
        """
        properties = context.system_properties
        settings = (context.model_yaml_config or {}).get("handler", {})
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(int(settings.get("torch_threads") or cores))
        gpu = properties.get("gpu_id")
        device = f"cuda:{gpu}" if gpu is not None and torch.cuda.is_available() else "cpu"
        started = time.perf_counter()
        self.policy = Policy.load(
            Path(properties["model_dir"]), device, int(settings.get("decode_threads") or cores)
        )
        self.policy.warm_up()
        self.initialized = True
        spec = self.policy.spec
        logger.info(
            "policy %s %s on %s, ready after %.1f s",
            spec.name,
            spec.version,
            device,
            time.perf_counter() - started,
        )

    def handle(self, data: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """Answer one batch: one serialised answer a row, in order."""
        received_s = time.time()
        headers = [_headers(context, index) for index in range(len(data))]
        rows = [_row(*pair) for pair in zip(data, headers, strict=True)]
        arrived_s = [_arrived(header, received_s) for header in headers]
        try:
            answers = self.policy.infer(rows, arrived_s)
        except torch.AcceleratorError:
            logger.exception("the device is lost; a fresh worker takes over")
            os._exit(1)
        return [
            self._reply(context, index, answer, headers[index], (received_s - arrived_s[index]) * 1000)
            for index, answer in enumerate(answers)
        ]

    def _reply(
        self,
        context: Context,
        index: int,
        answer: Answer | RequestError,
        headers: Mapping[str, str],
        queue_ms: float,
    ) -> bytes:
        request_id = context.get_request_id(index)
        if isinstance(answer, RequestError):
            context.set_response_status(answer.status, "", index)
            return _serialise(context, index, {**answer.body(), "request_id": request_id}, headers)
        return _serialise(context, index, self._body(answer, queue_ms, request_id), headers)

    def _body(self, answer: Answer, queue_ms: float, request_id: str | None) -> dict[str, object]:
        chunk, spec = answer.chunk, self.policy.spec
        return {
            # Seven digits are all that float32 holds.
            "actions": [[float(f"{value:.7g}") for value in action] for action in chunk.actions.tolist()],
            "action_names": chunk.space.names,
            "control_hz": chunk.space.control_hz,
            "confidence": chunk.confidence,
            "safety": {"status": chunk.safety.status, "violations": chunk.safety.violations},
            "timing_ms": {
                "queue": round(queue_ms, 3),
                **{stage: round(value, 3) for stage, value in answer.timing_ms.items()},
                "batch_size": answer.batch_size,
            },
            "policy": spec.name,
            "version": spec.version,
            "request_id": request_id,
        }


def _headers(context: Context, index: int) -> dict[str, str]:
    """Return one request's headers by lower-case name; TorchServe keeps the case that the client sent."""
    return {str(name).lower(): str(value) for name, value in context.get_all_request_header(index).items()}


def _row(data: Mapping[str, Any], headers: Mapping[str, str]) -> Row | RequestError:
    """Return the request's fields: TorchServe hands over form fields, or one raw or parsed `body`."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == MULTIPART:
        return data or MalformedBody(None, "the multipart body has no readable part")
    if media_type not in (JSON, MSGPACK):
        return UnsupportedMediaType(
            None, f"send {MULTIPART}, {JSON} or {MSGPACK}; got {media_type or 'none'}"
        )
    body = data.get("body")
    if media_type == MSGPACK and isinstance(body, bytes | bytearray):
        try:
            body = msgspec.msgpack.decode(body)
        except msgspec.DecodeError:
            return MalformedBody(None, "the body is not msgpack")
    if not isinstance(body, dict) or not all(isinstance(name, str) for name in body):
        return MalformedBody(None, f"the body must be an object of fields in {media_type}")
    return body


def _arrived(headers: Mapping[str, str], received_s: float) -> float:
    """Return when the request reached the host [s since the epoch].

    TorchServe does not tell how long a request queued. A proxy or client does, in the customary header
    `X-Request-Start: t=<unix time>` in seconds or milliseconds; without it the queue counts as 0.
    """
    try:
        start = float(headers.get("x-request-start", "").removeprefix("t="))
    except ValueError:
        return received_s
    start_s = start / 1000 if start > 1e11 else start
    return start_s if 0 < start_s < received_s else received_s


def _serialise(context: Context, index: int, body: Mapping[str, object], headers: Mapping[str, str]) -> bytes:
    if MSGPACK in headers.get("accept", ""):
        context.set_response_content_type(index, MSGPACK)
        return msgspec.msgpack.encode(body)
    context.set_response_content_type(index, JSON)
    return msgspec.json.encode(body)
