"""A small real HTTP server that answers as the contract says, or as a test wants."""

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import numpy as np

MSGPACK = "application/msgpack"
ANSWER = {
    "actions": [[0.01, -0.02, 1.0], [0.02, -0.01, 1.0]],
    "action_names": ["x", "y", "grip"],
    "control_hz": 10.0,
    "confidence": 0.97,
    "safety": {"status": "clamped", "violations": ["x exceeds its limit by 0.1 m"]},
    "timing_ms": {"queue": 1.0, "inference": 4.5, "batch_size": 4},
    "policy": "tabletop",
    "version": "1.0",
    "request_id": "r-1",
}
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


class Server(ThreadingHTTPServer):
    """Answers every POST with `answer`, after `wait_s`; keeps what it was sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answer: str | bytes = json.dumps(ANSWER)
        self.status, self.kind, self.wait_s = 200, "application/json", 0.0
        # Further headers of every answer.
        self.more: dict[str, str] = {}
        # One answer a request, instead of `answer`.
        self.answers: Iterator[str] | None = None
        # Requests, counted from 1, whose connection is closed without a byte of an answer.
        self.hang_up_on: set[int] = set()
        self.connections: set[int] = set()
        self.requests: list[tuple[str, dict[str, str], dict]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        assert isinstance(server, Server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.connections.add(self.client_address[1])
        server.requests.append((self.path, headers, fields(headers["content-type"], body)))
        time.sleep(server.wait_s)
        if len(server.requests) in server.hang_up_on:
            self.close_connection = True
            return
        answer = next(server.answers) if server.answers else server.answer
        answer = answer if isinstance(answer, bytes) else answer.encode()
        self.send_response(server.status)
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", str(len(answer)))
        for name, value in server.more.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_request(self, code="-", size="-"):
        pass


def fields(content_type, body):
    """Take a body apart by its content type."""
    return msgspec.msgpack.decode(body) if content_type == MSGPACK else parts(content_type, body)


def parts(content_type, body):
    """Split multipart/form-data into {name: (content type, bytes)}."""
    multipart = re.fullmatch(r"multipart/form-data; boundary=(\S+)", content_type)
    assert multipart, content_type
    found = {}
    for part in body.split(b"--" + multipart[1].encode())[1:-1]:
        head, _, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]+)"', head)
        assert name, head
        kind = re.search(rb"Content-Type: (\S+)", head)
        found[name[1].decode()] = (kind and kind[1].decode(), data.removesuffix(b"\r\n"))
    return found


@contextlib.contextmanager
def running_server():
    """Serve in a thread on a free port."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
