"""Faults of clients: they hang up, they are slow, they only hold connections."""

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from bench.faults.robots import Robots, counted
from bench.faults.setup import SetUp
from loadtest.body import MSGPACK


def leave(at: SetUp, _robots: Robots) -> str:
    """Let eight clients hang up right after each request, for 3 s."""
    row = at.places.asks[0].body
    head = f"POST /predictions/vla HTTP/1.1\r\nHost: x\r\nContent-Type: {MSGPACK}\r\n"
    sent = f"{head}Content-Length: {len(row)}\r\n\r\n".encode() + row
    counts = Counter[str]()
    end_s = time.monotonic() + 3

    def hang_up() -> None:
        while time.monotonic() < end_s:
            with socket.create_connection(("127.0.0.1", at.port), timeout=10) as connection:
                connection.sendall(sent)
            counts["left"] += 1
            time.sleep(0.02)

    _at_once(8, hang_up)
    return f"{counts['left']} requests whose client was gone"


def dribble(at: SetUp, _robots: Robots) -> str:
    """Let twenty clients send a byte of their body every 0.2 s, for 12 s."""
    statuses: list[str] = []

    def send_slowly() -> None:
        with socket.create_connection(("127.0.0.1", at.port), timeout=0.2) as connection:
            connection.sendall(b"POST /predictions/vla HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(100):
                try:
                    statuses.append(connection.recv(1000)[9:12].decode() or "closed")
                except TimeoutError:
                    connection.sendall(b"x")
                else:
                    return

    _at_once(20, send_slowly)
    return f"the slow ones: {counted(Counter(statuses))}"


def idle(at: SetUp, _robots: Robots) -> str:
    """Hold 2,000 connections without a word, for 6 s."""
    connections = [socket.create_connection(("127.0.0.1", at.port), timeout=10) for _ in range(2000)]
    time.sleep(6)
    alive = 0
    for connection in connections:
        connection.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            connection.recv(1)
            continue
        alive += 1
    for connection in connections:
        connection.close()
    return f"{alive} of 2000 were still open after 6 s"


def _at_once(clients: int, ask: Callable[[], None]) -> None:
    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
