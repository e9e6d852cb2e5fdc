"""The load generator, a process of its own: `python -m bench.generator` reads a plan and writes samples.

Keep-alive connections over asyncio's raw streams, no HTTP library: requests are ready-made, an answer is read
up to its Content-Length and taken apart only after the phase.
"""

import asyncio
import contextlib
import random
import sys
import time
from collections import deque
from pathlib import Path

import msgspec

from bench.bodies import Request

# Most connections of open-loop arrivals; a later arrival waits, and its latency counts from its due time.
MOST_CONNECTIONS = 512
# After a phase's end, the requests in flight get this long [s].
DRAIN_S = 60.0


class Plan(msgspec.Struct, frozen=True):
    """One phase of load."""

    host: str
    port: int
    # File of ready-made requests, sent in order, again and again.
    pool: str
    duration_s: float
    # Closed loop: so many clients, each sends its next request when it has its answer.
    clients: int = 0
    # Open loop: requests arrive at this rate whatever the server does (Poisson process); 0: closed loop.
    rate_hz: float = 0.0
    seed: int = 0


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One request's fate."""

    # When it was sent, or was due to be sent in open loop, since the phase's begin [s].
    sent_s: float
    # From then until the last byte of the answer [s].
    latency_s: float
    # HTTP status; 0: the connection broke.
    status: int
    body: bytes


class Samples(msgspec.Struct, frozen=True):
    """What a phase gave."""

    samples: list[Sample]
    # From the first request to the last answer [s]: the requests in flight at the phase's end are waited for.
    elapsed_s: float
    # The generator's own CPU time in it [s].
    cpu_s: float
    # Requests that were never answered within the drain.
    unanswered: int


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, load: "Load") -> None:
        self.load = load
        self.buffer = bytearray()
        self.expected = -1
        self.due_s = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, request: Request, due_s: float) -> None:
        """Send one request in one write, stamped with this moment."""
        self.due_s, self.busy = due_s, True
        self.transport.write(b"".join((request.head, f"{time.time():.6f}".encode(), request.rest)))

    def data_received(self, data: bytes) -> None:
        """Collect an answer up to its Content-Length."""
        self.buffer += data
        if self.expected < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self.expected = end + 4 + _content_length(self.buffer[:end])
        if len(self.buffer) >= self.expected:
            answer, self.busy = bytes(self.buffer), False
            self.buffer.clear()
            self.expected = -1
            self.load.answered(self, int(answer[9:12]), answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count a request that this connection took along."""
        self.load.lost(self)


class Load:
    """Drives the connections of one phase."""

    def __init__(self, plan: Plan, pool: list[Request]) -> None:
        self.plan, self.pool, self.next = plan, pool, 0
        self.samples: list[Sample] = []
        self.idle: deque[Connection] = deque()
        self.waiting: deque[float] = deque()
        self.connections = self.in_flight = 0
        self.begin_s = self.last_s = 0.0
        self.done = asyncio.Event()
        self.opening: set[asyncio.Task[None]] = set()

    async def run(self) -> Samples:
        """Run the phase and wait for the requests in flight."""
        opened = [await self._open() for _ in range(self.plan.clients or 16)]
        cpu_s = time.process_time()
        self.begin_s = self.last_s = time.perf_counter()
        if self.plan.rate_hz:
            self.idle.extend(opened)
            await self._arrivals()
        else:
            for connection in opened:
                self._send(connection, time.perf_counter())
            await asyncio.sleep(self.plan.duration_s)
        if self.in_flight or self.waiting:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.done.wait(), DRAIN_S)
        used_s = time.process_time() - cpu_s
        unanswered = self.in_flight + len(self.waiting)
        return Samples(self.samples, self.last_s - self.begin_s, used_s, unanswered)

    async def _arrivals(self) -> None:
        """Send requests at the moments of a Poisson process."""
        draw = random.Random(self.plan.seed)
        due_s = self.begin_s
        while (due_s := due_s + draw.expovariate(self.plan.rate_hz)) < self.begin_s + self.plan.duration_s:
            if (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            if self.idle:
                self._send(self.idle.popleft(), due_s)
                continue
            self.waiting.append(due_s)
            if self.connections < MOST_CONNECTIONS:
                self._replace()

    async def _open(self) -> Connection:
        self.connections += 1
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self), self.plan.host, self.plan.port)
        return connection

    def _send(self, connection: Connection, due_s: float) -> None:
        request = self.pool[self.next % len(self.pool)]
        self.next += 1
        self.in_flight += 1
        connection.send(request, due_s)

    def answered(self, connection: Connection, status: int, answer: bytes) -> None:
        """Note an answer and give the connection its next request."""
        now_s = self._note(connection, status, answer)
        if status >= 400:  # the server closes the connection; a fresh one goes on
            connection.transport.abort()
            return
        self._next(connection, now_s)

    def lost(self, connection: Connection) -> None:
        """Note a broken connection and open another in its place."""
        self.connections -= 1
        if connection in self.idle:
            self.idle.remove(connection)
        if connection.busy:
            connection.busy = False
            self._note(connection, 0, b"")
        if self._running():
            self._replace()

    def _replace(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reopen())
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)

    async def _reopen(self) -> None:
        self._next(await self._open(), time.perf_counter())

    def _next(self, connection: Connection, now_s: float) -> None:
        if self.waiting:
            self._send(connection, self.waiting.popleft())
        elif self.plan.rate_hz or not self._running():
            self.idle.append(connection)
        else:
            self._send(connection, now_s)

    def _note(self, connection: Connection, status: int, answer: bytes) -> float:
        self.last_s = now_s = time.perf_counter()
        due_s = connection.due_s
        self.samples.append(Sample(due_s - self.begin_s, now_s - due_s, status, answer))
        self.in_flight -= 1
        if not (self.in_flight or self.waiting or self._running()):
            self.done.set()
        return now_s

    def _running(self) -> bool:
        return time.perf_counter() < self.begin_s + self.plan.duration_s


def _content_length(head: bytearray) -> int:
    _, _, value = head.lower().partition(b"\r\ncontent-length:")
    return int(value.partition(b"\r\n")[0])


def main() -> None:
    """Read the plan from the file named first, write the samples to the file named second."""
    plan_file, samples_file = map(Path, sys.argv[1:])
    plan = msgspec.msgpack.decode(plan_file.read_bytes(), type=Plan)
    pool = msgspec.msgpack.decode(Path(plan.pool).read_bytes(), type=list[Request])
    samples_file.write_bytes(msgspec.msgpack.encode(asyncio.run(Load(plan, pool).run())))


if __name__ == "__main__":
    main()
