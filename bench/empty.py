"""An endpoint that does nothing: `python -m bench.empty` prints its port and answers until it is ended.

It reads a request up to its Content-Length and answers with the same 400 bytes: what the load generator can
send at most on this machine, with the operating system's share.
"""

import asyncio

ANSWER = b'{"actions": [' + b"0" * 380 + b"]}"
REPLY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER
)


class Endpoint(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.seen = bytearray()
        self.missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer when a request is whole."""
        if self.missing:
            self.missing -= len(data)
        else:
            self.seen += data
            end = self.seen.find(b"\r\n\r\n")
            if end < 0:
                return
            length = int(self.seen.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            self.missing = end + 4 + length - len(self.seen)
            self.seen.clear()
        if self.missing == 0:
            self.transport.write(REPLY)


async def main() -> None:
    """Serve on a free port of loopback."""
    server = await asyncio.get_running_loop().create_server(Endpoint, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
