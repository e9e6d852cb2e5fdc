"""What all connections of the gate share: TorchServe, limits, counters, readiness, the drain."""

import asyncio
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Protocol

from server.gate.batch import alone
from server.gate.counters import Counters, gauge, gauges
from server.gate.openapi import openapi
from server.gate.queue import FairQueue, Room, Ticket
from server.gate.refusal import JSON, NOT_READY, Answer, Refusal, not_found
from server.gate.routes import Prediction, model_of
from server.gate.torchserve import Exchange, Upstream
from server.workers import Workers

SWEEP_S = 0.25
MOST_CONNECTIONS = 4096
# Of requests that are not complete yet, together [bytes].
MOST_BUFFERED = 256 << 20
# What is cut off first where there is too much.
UNFINISHED = ("idle", "head", "body")
PING = b"GET /ping HTTP/1.1\r\nHost: torchserve\r\n\r\n"
READY = Answer(200, JSON, b'{"status": "ready"}\n')


class Connected(Protocol):
    """A client's connection, as the hop sees it."""

    phase: str
    since_s: float
    until_s: float

    @property
    def buffered(self) -> int:
        """Bytes of an unfinished request."""
        ...

    def time_out(self) -> None:
        """Its phase is over."""
        ...

    def close(self) -> None:
        """Close at once."""
        ...


class Hop:
    """The gate's state, on its event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        inference_port: int,
        ours: Set[str],
        rooms: Mapping[str, Room],
        shared_memory: Path | None = None,
    ) -> None:
        self.loop = loop
        self.upstream = Upstream(inference_port)
        # Models whose workers read MessagePack.
        self.ours = ours
        self.counters = Counters()
        self._openapi = openapi()
        self._queues = {
            model: FairQueue(self.upstream, room, self.counters, loop, shared_memory)
            for model, room in rooms.items()
        }
        self.ready = self.draining = False
        self._workers: Mapping[str, Workers] = {}
        self.drained = asyncio.Event()
        self._clients: set[Connected] = set()

    def add(self, client: Connected) -> None:
        """Know a connection; where there are too many, the one that has waited longest is cut off."""
        self._clients.add(client)
        if len(self._clients) > 2 * MOST_CONNECTIONS:
            client.close()
        elif len(self._clients) > MOST_CONNECTIONS:
            self._cut_oldest()

    def remove(self, client: Connected) -> None:
        """Forget a connection."""
        self._clients.discard(client)
        if self.draining and not self._clients:
            self.drained.set()

    def sweep(self) -> None:
        """End every phase that is over; of unfinished requests keep only what memory allows."""
        now_s = self.loop.time()
        for client in [client for client in self._clients if client.until_s < now_s]:
            client.time_out()
        while sum(c.buffered for c in self._clients if c.phase in UNFINISHED) > MOST_BUFFERED:
            self._cut_oldest()

    def show_workers(self, workers: Mapping[str, Workers]) -> None:
        """Know the policies' workers; it is ready while each policy has one that is."""
        self._workers = workers
        self.ready = all(found.ready for found in workers.values())

    def show_stopping(self) -> None:
        """Be not ready any more; requests are still taken."""
        self.ready = False

    def drain(self) -> None:
        """Take no new request; `drained` is set when all that were taken are answered."""
        self.draining, self.ready = True, False
        for client in [client for client in self._clients if client.phase == "idle"]:
            client.close()
        if not self._clients:
            self.drained.set()

    def ask(
        self, client: str, asked: Prediction, done: Callable[[Answer | Refusal | None], None]
    ) -> Exchange | Ticket | None:
        """Hand a model's request on, in its client's turn."""
        queue = self._queues.get(model_of(asked.path))
        return queue.ask(client, asked, done) if queue else self.upstream.ask(alone(asked), done)

    def metrics(self) -> bytes:
        """Return the gate's metrics in Prometheus' text format."""
        queues = self._queues.values()
        waiting, computing = sum(q.waiting for q in queues), sum(q.computing for q in queues)
        ready = {policy: found.ready for policy, found in self._workers.items()}
        wanted = {policy: found.wanted for policy, found in self._workers.items()}
        return b"".join(
            [
                self.counters.text(),
                gauge(
                    "vla_gate_ready",
                    "1: every policy has a worker that is ready, and it does not drain.",
                    int(self.ready),
                ),
                gauge("vla_gate_waiting", "Requests in the gate's queue.", waiting),
                gauge("vla_gate_computing", "Requests within TorchServe.", computing),
                gauges("vla_gate_workers_ready", "Workers that compute.", "policy", ready),
                gauges("vla_gate_workers_wanted", "Workers that there should be.", "policy", wanted),
            ]
        )

    def own(self, path: str, done: Callable[[Answer | Refusal | None], None]) -> Exchange | None:
        """Answer what is not a model's."""
        if path == "/health/live":
            return self.upstream.ask(PING, done)
        if path == "/health/ready":
            done(READY if self.ready else NOT_READY)
        elif path == "/openapi.json":
            done(self._openapi)
        else:
            done(not_found())
        return None

    def close(self) -> None:
        """Cut every connection."""
        for client in list(self._clients):
            client.close()
        self.upstream.close()

    def _cut_oldest(self) -> None:
        unfinished = [client for client in self._clients if client.phase in UNFINISHED]
        if unfinished:
            min(unfinished, key=lambda client: client.since_s).time_out()
