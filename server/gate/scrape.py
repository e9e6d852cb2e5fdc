"""The metrics port: TorchServe's metrics, the gate's own, and the GPUs'."""

import asyncio
import contextlib
from collections.abc import Callable

from server.gate.gpus import Gpus
from server.gate.refusal import Answer
from server.gate.torchserve import Upstream

TIMEOUT_S = 5.0
# What a client, or TorchServe, may do to a scrape.
BROKEN = (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
ASKED = b"GET /metrics HTTP/1.1\r\nHost: torchserve\r\n\r\n"
FOUND = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nConnection: close\r\n\r\n"
)
OTHER = (
    b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    b'{"error": {"code": "not_found", "field": null, "message": "GET /metrics"}}'
)


class Scrape:
    """Answers `GET /metrics`; one request a connection."""

    def __init__(self, metrics_port: int, own: Callable[[], bytes]) -> None:
        self._upstream = Upstream(metrics_port)
        self._own = own
        self._gpus = Gpus()

    def close(self) -> None:
        """Close the connection to TorchServe."""
        self._upstream.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        with contextlib.suppress(*BROKEN):
            async with asyncio.timeout(TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                found = head.split(b" ")[:2] == [b"GET", b"/metrics"]
                writer.write(FOUND + await self._text() if found else OTHER)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _text(self) -> bytes:
        answered: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        exchange = self._upstream.ask(ASKED, answered.set_result)
        try:
            answer = await answered
        finally:
            exchange.cancel()
        return (answer.body if answer else b"") + self._own() + await self._gpus.text()
