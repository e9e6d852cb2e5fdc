"""A gate in this event loop, before a small TorchServe that answers as a test wants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import psutil
import uvloop

from server.gate.batch import ANEW, LATER, MEDIA_TYPE, Joined, Reply
from server.gate.client import Client
from server.gate.hand_over import BY_NAME
from server.gate.hop import Hop
from server.gate.queue import Room

POST = b"POST /predictions/vla HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\n"
ROOM = Room(batches=2, largest=1, waiting=3)
# A busy machine is slow: after so long it is a hang [s].
PATIENCE_S = 30
UNKNOWN = b"HTTP/1.1 415 X\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
DIED = b'{"code": 500, "type": "x", "message": "Worker died."}'


class Small:
    """Answers everybody with what it sent. A body that begins with `wait` waits for `go`; `drop` hangs up."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.batches: list[list[Joined]] = []
        # By ticket, of those that were not ready yet.
        self.kept: dict[int, bytes] = {}
        self.connections = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.go = asyncio.Event()
        # Where batches come as files; None: as a worker of an archive that knows of none.
        self.shared_memory: Path | None = None
        # How many came so.
        self.files = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        await self._answer(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self.open.remove(writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [
                    int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"Content-Length" in line
                ]
                body = await reader.readexactly(lengths[0]) if lengths else b""
                if BY_NAME.encode() in head:
                    if self.shared_memory is None:
                        writer.write(UNKNOWN)
                        continue
                    self.files += 1
                    body = (self.shared_memory / body.decode()).read_bytes()
                if MEDIA_TYPE.encode() in head:
                    writer.write(await self._batch(msgspec.msgpack.decode(body, type=list[Joined])))
                    continue
                self.seen.append(body or head.split(b" ")[1])
                if body.startswith(b"wait"):
                    await self.go.wait()
                if body.startswith(b"drop"):
                    break
                if body.startswith(b"open"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\nto the end")
                    break
                end = b"Connection: close\r\n" if body.startswith(b"close") else b""
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nX-Request-Id: one\r\nServer: hidden\r\n"
                    + b"%bContent-Length: %d\r\n\r\n%b" % (end, len(body), body)
                )
                if end:
                    break

    async def _batch(self, batch: list[Joined]) -> bytes:
        """Answer each with its own body, `bad` with 422, `slow 2` at the third time, `lost` not at all.

        What is `slow` is kept; `slow forget 1` is not, and is to be sent anew. `slow said 1` says that it
        takes 0.2 s.
        """
        bodies = [joined.body for joined in batch]
        self.seen.append(b" + ".join(bodies))
        self.batches.append(batch)
        if any(body.startswith(b"wait") for body in bodies):
            await self.go.wait()
        if any(body.startswith(b"die") for body in bodies):
            return b"HTTP/1.1 500 X\r\nContent-Length: 53\r\n\r\n" + DIED
        replies = [self._reply(joined) for joined in batch if not joined.body.startswith(b"lost")]
        data = msgspec.msgpack.encode(replies)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(data)}\r\n\r\n"
        return head.encode() + data

    def _reply(self, joined: Joined) -> Reply:
        status, body = self._status(joined), self.kept.get(joined.ticket, joined.body)
        said = status == LATER and b"said" in body
        return Reply(status, "a/b", joined.request_id, b"200" if said else body)

    def _status(self, joined: Joined) -> int:
        if joined.again and joined.ticket not in self.kept:
            return ANEW
        body = self.kept.get(joined.ticket, joined.body)
        if body.startswith(b"slow "):
            asked = sum(one.ticket == joined.ticket for batch in self.batches for one in batch)
            if b"forget" not in body:
                self.kept[joined.ticket] = body
            return LATER if asked <= int(body[-1:]) else 200
        return 422 if joined.body.startswith(b"bad") else 200


class Running:
    """A gate in this event loop."""

    def __init__(self, hop: Hop, port: int, torchserve: Small) -> None:
        self.hop, self.port, self.torchserve = hop, port, torchserve
        self.writers: list[asyncio.StreamWriter] = []

    async def open(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        writer.write(data)
        return reader, writer

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send and read one answer on a connection of its own."""
        return await answer(await self.open(data))

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                await asyncio.sleep(0.001)


async def answer(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(PATIENCE_S):
        first, *lines = (await connection[0].readuntil(b"\r\n\r\n"))[:-4].decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await connection[0].readexactly(int(headers["content-length"]))
    return int(first.split(" ")[1]), headers, body


async def closed(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bool:
    async with asyncio.timeout(PATIENCE_S):
        return await connection[0].read() == b""


def sockets() -> int:
    """How many of this process are open; a loop opens other files of its own when it first needs them."""
    return len(psutil.Process().net_connections("tcp"))


@contextlib.asynccontextmanager
async def started(room: Room, shared_memory: Path | None) -> AsyncIterator[Running]:
    torchserve, before = Small(), sockets()
    upstream = await asyncio.start_server(torchserve.serve, "127.0.0.1", 0)
    hop = Hop(
        asyncio.get_running_loop(),
        upstream.sockets[0].getsockname()[1],
        {"ours"},
        {"vla": room, "ours": room},
        shared_memory,
    )
    server = await asyncio.get_running_loop().create_server(lambda: Client(hop), "127.0.0.1", 0)
    running = Running(hop, server.sockets[0].getsockname()[1], torchserve)
    try:
        yield running
    finally:
        torchserve.go.set()
        server.close()
        upstream.close()
        hop.close()
        for writer in (*running.writers, *torchserve.open):
            writer.transport.abort()
        await running.until(lambda: sockets() == before)


def gate(
    test: Callable[[Running], Awaitable[None]], room: Room = ROOM, shared_memory: Path | None = None
) -> None:
    async def run() -> None:
        async with started(room, shared_memory) as running:
            await test(running)

    uvloop.run(run())  # the loop that ships: its timers are not those of asyncio
