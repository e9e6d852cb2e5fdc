"""Kept connections to TorchServe, one request at a time on each."""

import asyncio
import re
from collections.abc import Callable
from typing import cast

from server.gate.refusal import Answer

STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})")
CONNECT_TIMEOUT_S = 2.0
# Of TorchServe's headers those that a client may read.
PASSED = {b"x-request-id", b"request-id", b"retry-after"}

Done = Callable[[Answer | None], None]


class Upstream:
    """TorchServe's inference port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.idle: list[Connection] = []
        self._opening: set[asyncio.Task[None]] = set()

    def ask(self, request: bytes, done: Done) -> "Exchange":
        """Send a request; `done` gets the answer, or None when there is none."""
        exchange = Exchange(self, request, done)
        exchange.start()
        return exchange

    def connect(self, exchange: "Exchange") -> None:
        """Open a connection for an exchange."""
        task = asyncio.get_running_loop().create_task(self._connect(exchange))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, exchange: "Exchange") -> None:
        loop = asyncio.get_running_loop()
        try:
            opening = loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port)
            _, connection = await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError):
            exchange.finish(None)
        else:
            exchange.use(connection)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        for connection in self.idle:
            connection.close()


class Exchange:
    """One request and its answer."""

    def __init__(self, upstream: Upstream, request: bytes, done: Done) -> None:
        self._upstream = upstream
        self._request = request
        self._done: Done | None = done
        self._connection: Connection | None = None

    def start(self) -> None:
        """Send on a connection that is kept, else on a new one."""
        if self._upstream.idle:
            self.use(self._upstream.idle.pop())
        else:
            self._upstream.connect(self)

    def use(self, connection: "Connection") -> None:
        """Send on a connection, unless nobody waits any more."""
        if self._done is None:
            connection.release()
            return
        self._connection = connection
        connection.send(self._request, self)

    def again(self) -> None:
        """The kept connection was closed before a byte of the answer: ask on a new one."""
        self._connection = None
        if self._done is not None:
            self._upstream.connect(self)

    def finish(self, answer: Answer | None) -> None:
        """Hand the answer on."""
        self._connection = None
        if self._done is not None:
            done, self._done = self._done, None
            done(answer)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self._done = None
        if self._connection is not None:
            self._connection.close()


class Connection(asyncio.Protocol):
    """One connection to TorchServe."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._buffer = bytearray()
        self._used = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, exchange: Exchange) -> None:
        """Send a request, whose answer the exchange gets."""
        assert self._transport is not None
        self._exchange, self._used = exchange, self._used + 1
        self._transport.write(request)

    def release(self) -> None:
        """Keep the connection for the next request."""
        if self._transport is not None and not self._transport.is_closing():
            self._upstream.idle.append(self)

    def close(self) -> None:
        """Close it, whatever it waits for."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Collect an answer."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        status, headers = _read_head(bytes(self._buffer[:end]))
        length = headers.get(b"content-length")
        if status == 100 or length is None or len(self._buffer) < end + 4 + int(length):
            return  # without a length it ends with the connection
        self._finish(status, headers, bytes(self._buffer[end + 4 : end + 4 + int(length)]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Finish what waits: an answer without a length, or none at all."""
        if self in self._upstream.idle:
            self._upstream.idle.remove(self)
        exchange, self._transport = self._exchange, None
        if exchange is None:
            return
        self._exchange = None
        end = self._buffer.find(b"\r\n\r\n")
        if not self._buffer and self._used > 1:
            exchange.again()
        elif end > 0 and b"content-length" not in (found := _read_head(bytes(self._buffer[:end])))[1]:
            exchange.finish(_answer(*found, bytes(self._buffer[end + 4 :])))
        else:
            exchange.finish(None)

    def _finish(self, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
        exchange, self._exchange = self._exchange, None
        self._buffer.clear()
        if exchange is None or headers.get(b"connection", b"").lower() == b"close":
            self.close()
        else:
            self.release()
        if exchange is not None:
            exchange.finish(_answer(status, headers, body))


def _read_head(data: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = data.split(b"\r\n")
    match = STATUS.match(first)
    pairs = (line.partition(b":") for line in lines)
    return int(match[1]) if match else 502, {name.lower(): value.strip() for name, _, value in pairs}


def _answer(status: int, headers: dict[bytes, bytes], body: bytes) -> Answer:
    passed = tuple((name, value) for name, value in headers.items() if name in PASSED)
    return Answer(status, headers.get(b"content-type", b""), body, passed)
