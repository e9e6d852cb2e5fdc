"""Adapts TorchServe to `Policy`: rows in, serialised answers out. The only file that imports `ts`.

TorchServe loads a handler file that defines exactly one class. Each row gets its own status through
`set_response_status(idx=...)`; raising from `handle` would fail its whole batch.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ts.context import Context
from ts.metrics.metric_abstract import MetricAbstract
from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

from vla_runtime import device, wire
from vla_runtime.errors import PolicyFailed, RequestError
from vla_runtime.images import Limits
from vla_runtime.metrics import CATALOGUE, Meter, Metric
from vla_runtime.observation import Row
from vla_runtime.policy import Answer, Policy

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
        started, threads = time.perf_counter(), device.threads(int(settings.get("workers", 1)))
        torch.set_num_threads(threads)
        place = device.of_worker(properties.get("gpu_id"))
        bounds = {field.name: settings[field.name] for field in fields(Limits) if field.name in settings}
        self.folder = Path(properties["model_dir"])
        self.policy = Policy.load(self.folder, place, threads, Limits(**bounds))
        self.policy.warm_up()
        self.meter = Meter(self.policy, _place())
        self.metrics = {metric: _metric(context, metric) for metric in CATALOGUE}
        self.initialized = True
        spec, took_s = self.policy.spec, time.perf_counter() - started
        logger.info(
            "policy %s %s on %s, ready after %.1f s", spec.name, spec.version, self.policy.device, took_s
        )

    def handle(self, data: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """Answer one batch: one serialised answer a row, in order."""
        received_s = time.time()
        headers = [_headers(context, index) for index in range(len(data))]
        types = [header.get("content-type", "") for header in headers]
        rows = [wire.read(*pair) for pair in zip(data, types, strict=True)]
        arrived_s = [wire.arrival(header.get("x-request-start", ""), received_s) for header in headers]
        try:
            answers = self.policy.infer(rows, arrived_s)
        except torch.AcceleratorError:
            logger.exception("the device is lost; a fresh worker takes over")
            os._exit(1)
        queue_ms = [(received_s - arrived) * 1000 for arrived in arrived_s]
        self._report(headers, answers, queue_ms)
        given = zip(headers, rows, answers, queue_ms, strict=True)
        bodies = [partial(self._body, *parts) for parts in given]
        return [_reply(context, index, headers[index], body) for index, body in enumerate(bodies)]

    def _report(
        self,
        headers: Sequence[Mapping[str, str]],
        answers: Sequence[Answer | RequestError],
        queue_ms: Sequence[float],
    ) -> None:
        """Add one batch to the metrics; a question about the policy itself is no request."""
        counted = [index for index, header in enumerate(headers) if header.get("describe") != "True"]
        for reading in self.meter.readings([answers[i] for i in counted], [queue_ms[i] for i in counted]):
            self.metrics[reading.metric].add_or_update(reading.value, list(reading.labels))

    def _body(
        self,
        headers: Mapping[str, str],
        row: Row | RequestError,
        answer: Answer | RequestError,
        queue_ms: float,
    ) -> dict[str, Any] | bytes | RequestError:
        spec = self.policy.spec
        if headers.get("describe") == "True":  # GET /models/<name>?customized=true
            return wire.description(spec, self.policy.example_row(self.folder))
        if isinstance(row, RequestError):
            return row
        if isinstance(answer, RequestError):
            return answer
        if headers.get("explain") == "True":  # POST /explanations/<name>
            return wire.explanation(answer, spec, headers.get("accept", ""))
        return wire.answer_body(answer, spec, queue_ms)


def _reply(
    context: Context,
    index: int,
    headers: Mapping[str, str],
    body: Callable[[], dict[str, Any] | bytes | RequestError],
) -> bytes:
    """Make and serialise one answer; whatever fails here fails this request alone."""
    name = wire.request_id(headers.get("x-request-id", ""), context.get_request_id(index))
    try:
        return _send(context, index, headers, body(), name)
    except Exception:
        logger.exception("request %s: its answer can't be written", name)
        failed = PolicyFailed(None, "the server failed on this request")
        return _send(context, index, headers, failed, name)


def _send(
    context: Context,
    index: int,
    headers: Mapping[str, str],
    body: dict[str, Any] | bytes | RequestError,
    name: str,
) -> bytes:
    """Serialise one answer and set its own status, content type and request id."""
    context.set_response_header(index, wire.REQUEST_ID, name)
    if isinstance(body, bytes):
        context.set_response_content_type(index, wire.PNG)
        return body
    if isinstance(body, RequestError):
        logger.info("request %s: %d %s", name, body.status, body.code)
        context.set_response_status(body.status, "", index)
        body = body.body()
    body["request_id"] = name
    reply, media_type = wire.serialise(body, headers.get("accept", ""))
    context.set_response_content_type(index, media_type)
    return reply


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
