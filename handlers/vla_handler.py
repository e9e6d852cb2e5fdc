"""Adapts TorchServe to `Policy`: rows in, serialised answers out. The only file that imports `ts`.

TorchServe loads a handler file that defines exactly one class. Each row gets its own status through
`set_response_status(idx=...)`; raising from `handle` would fail its whole batch.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from ts.context import Context
from ts.metrics.metric_abstract import MetricAbstract
from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

from vla_runtime import device, joined, wire
from vla_runtime.errors import Later, PolicyFailed, RequestError
from vla_runtime.images import Limits
from vla_runtime.joined import Call, Reply, Request
from vla_runtime.metrics import CATALOGUE, Meter, Metric
from vla_runtime.observation import Row
from vla_runtime.policy import Answer, Policy
from vla_runtime.turns import ALONE, Turn

logger = logging.getLogger(__name__)


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
        started, place = time.perf_counter(), device.of_worker(properties.get("gpu_id"))
        # Workers of one device take turns on it; on the CPU they share its cores instead.
        by_turns = settings.get("turns", place != "cpu")
        threads = device.threads(1 if by_turns else int(settings.get("workers", 1)))
        torch.set_num_threads(threads)
        bounds = {field.name: settings[field.name] for field in fields(Limits) if field.name in settings}
        self.folder = Path(properties["model_dir"])
        # Beside the folders of all policies of this TorchServe.
        turn = Turn(self.folder.parent / f"{place}.turn") if by_turns else ALONE
        self.policy = Policy.load(self.folder, place, threads, Limits(**bounds), turn)
        self.policy.warm_up()
        self.meter = Meter(self.policy, _place())
        self.metrics = {metric: _metric(context, metric) for metric in CATALOGUE}
        self.initialized = True
        spec, took_s = self.policy.spec, time.perf_counter() - started
        logger.info(
            "policy %s %s on %s, ready after %.1f s", spec.name, spec.version, self.policy.device, took_s
        )

    def handle(self, data: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """Answer what TorchServe collected: one body each, in order; one of them may carry a whole batch."""
        received_s = time.time()
        calls = [self._read(part, context, index, received_s) for index, part in enumerate(data)]
        asked = [request for call in calls for request in call.requests]
        arrived_s = [request.arrived_s for request in asked]
        try:
            tickets = [request.ticket for request in asked]
            explain = any(request.what == "explain" for request in asked)
            rows = [request.row for request in asked]
            answers = self.policy.infer(rows, arrived_s, tickets, attention=explain)
        except torch.AcceleratorError:
            logger.exception("the device is lost; a fresh worker takes over")
            os._exit(1)
        queue_ms = [(received_s - arrived) * 1000 for arrived in arrived_s]
        self._report(asked, answers, queue_ms)
        replies = iter([self._reply(*parts) for parts in zip(asked, answers, queue_ms, strict=True)])
        return [
            _send(context, index, call, list(islice(replies, len(call.requests))))
            for index, call in enumerate(calls)
        ]

    def _read(self, data: Mapping[str, Any], context: Context, index: int, received_s: float) -> Call:
        """Return one of TorchServe's requests as those that it carries."""
        headers = _headers(context, index)
        content_type = headers.get("content-type", "")
        if joined.is_batch(content_type):
            try:
                parts = joined.read(data["body"], content_type)
                return Call([Request.of(part, received_s) for part in parts], joined=True)
            except RequestError as error:
                row: Row | RequestError = error
        else:
            row = wire.read(data, content_type)
        name = wire.request_id(headers.get("x-request-id", ""), context.get_request_id(index))
        arrived_s = wire.arrival(headers.get("x-request-start", ""), received_s)
        # TorchServe's own flags: GET /models/<name>?customized=true, POST /explanations/<name>.
        what = next((flag for flag in ("describe", "explain") if headers.get(flag) == "True"), "predict")
        return Call([Request(row, headers.get("accept", ""), name, arrived_s, what)], joined=False)

    def _report(
        self,
        asked: Sequence[Request],
        answers: Sequence[Answer | RequestError],
        queue_ms: Sequence[float],
    ) -> None:
        """Add one batch to the metrics; neither questions about the policy itself nor what comes later."""
        answered = [not isinstance(answer, Later) for answer in answers]
        counted = [i for i, request in enumerate(asked) if request.what != "describe" and answered[i]]
        for reading in self.meter.readings([answers[i] for i in counted], [queue_ms[i] for i in counted]):
            self.metrics[reading.metric].add_or_update(reading.value, list(reading.labels))

    def _reply(self, request: Request, answer: Answer | RequestError, queue_ms: float) -> Reply:
        """Make and serialise one answer; whatever fails here fails this request alone."""
        try:
            return joined.serialised(request, self._body(request, answer, queue_ms))
        except Exception:
            logger.exception("request %s: its answer can't be written", request.name)
            return joined.serialised(request, PolicyFailed(None, "the server failed on this request"))

    def _body(
        self, request: Request, answer: Answer | RequestError, queue_ms: float
    ) -> dict[str, Any] | bytes | RequestError:
        spec = self.policy.spec
        if request.what == "describe":
            return wire.description(spec, self.policy.example_row(self.folder))
        if isinstance(request.row, RequestError):
            return request.row
        if isinstance(answer, RequestError):
            return answer
        if request.what == "explain":
            return wire.explanation(answer, spec, request.accept)
        return wire.answer_body(answer, spec, queue_ms)


def _send(context: Context, index: int, call: Call, replies: Sequence[Reply]) -> bytes:
    """Return one body, and set its own status, content type and request id."""
    if call.joined:
        context.set_response_content_type(index, joined.MEDIA_TYPE)
        return joined.join(replies)
    (reply,) = replies
    context.set_response_header(index, wire.REQUEST_ID, reply.request_id)
    context.set_response_content_type(index, reply.content_type)
    if reply.status != 200:
        context.set_response_status(reply.status, "", index)
    return reply.body


def _metric(context: Context, metric: Metric) -> MetricAbstract:
    """Return TorchServe's metric; one that its `metrics.yaml` does not declare is reported and not served."""
    kind, cache = MetricTypes(metric.kind), context.metrics
    assert cache is not None
    try:
        return cache.get_metric(metric.name, kind)
    except MetricsCacheKeyError:
        return cache.add_metric_to_cache(metric.name, metric.unit, list(metric.labels), kind)


def _place() -> str:
    """Return the number of this worker's socket, which the worker that replaces it inherits."""
    sockets = (argument for argument in sys.argv if ".ts.sock." in argument)
    return next(sockets, ".0").rpartition(".")[2]


def _headers(context: Context, index: int) -> dict[str, str]:
    """Return one request's headers by lower-case name; TorchServe keeps the case that the client sent."""
    return {str(name).lower(): str(value) for name, value in context.get_all_request_header(index).items()}
