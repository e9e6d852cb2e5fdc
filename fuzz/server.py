"""A running server: what it answers to whole requests that were changed, and to what its document allows."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from fuzz.run import Report, case, examine
from fuzz.target import Target

CONNECTIONS = 8
# How long an incomplete request is waited for, and an answer that has begun or is due [s].
PAUSE_S, ANSWER_S = 0.3, 10.0
# What is left of a batch when its deadline or its decoding says so is no failure.
ALLOWED = {"deadline_expired", "overloaded"}
CHECKS = (
    "no_failure",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)


def target_of(http: Target, port: int) -> Target:
    """Return the target that sends whole requests to a server."""
    return replace(http, name="server", check=partial(answered, port))


def send(target: Target, seed: int, duration_s: float, most: int | None = None) -> Report:
    """Send a target's inputs as they are, on a connection each.

    Args:
        target: made by `target_of`
        seed: of the run
        duration_s: how long
        most: inputs to send at most
    """
    report, began_s, start = Report("server"), time.monotonic(), 0

    def one(index: int) -> Report:
        alone = Report("server")
        examine(target, case(target, seed, index), index, alone)
        return alone

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        while start < (most or 1 << 62) and time.monotonic() - began_s < duration_s:
            count = min(100, (most or 1 << 62) - start)
            for alone in pool.map(one, range(start, start + count)):
                report.add(alone)
            start += count
    report.seconds = time.monotonic() - began_s
    return report


def answered(port: int, data: bytes) -> str:
    """Send bytes, and say in a word what came back.

    Raises:
        AssertionError: it is none of the contract's answers, or comes too late.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        with suppress(ConnectionError):  # refused before it was read
            connection.sendall(data)
        connection.settimeout(PAUSE_S)
        said = _first(connection)
    if not said:
        return "waits for more"
    head, _, body = said.partition(b"\r\n\r\n")
    if said.startswith(b'{"error": {"code": "bad_request"'):
        return "HTTP/0.9"  # which has no heads: nginx answers a line without a version so
    status = int(head.split(b" ", 2)[1])
    if status == 100:
        return "continues"
    kind = head.lower().partition(b"content-type: ")[2].partition(b"\r\n")[0]
    assert kind in (b"application/json", b"application/msgpack", b"image/png"), said[:300]
    if status == 200:
        return "answered"
    if data.startswith(b"HEAD"):
        return "head"
    error = (json.loads(body) if kind == b"application/json" else msgspec.msgpack.decode(body))["error"]
    assert set(error) == {"code", "field", "message"}, error
    assert 400 <= status < 500 or error["code"] in ALLOWED, said[:500]
    return error["code"]


def _first(connection: socket.socket) -> bytes:
    """Read the first answer; empty when none begins."""
    said, due_s = b"", time.monotonic() + ANSWER_S
    while time.monotonic() < due_s:
        try:
            piece = connection.recv(1 << 16)
        except TimeoutError:
            if not said:
                return b""
            continue
        except ConnectionError:
            piece = b""
        if not piece:
            return said
        said += piece
        head, end, body = said.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if end and len(body) >= int(length or 0):
            return head + end + body[: int(length or 0)]  # without what follows, where one input was several
    raise AssertionError(f"no end of the answer within {ANSWER_S:g} s: {said[:300]!r}")


def conform(url: str, seed: int, duration_s: float, log: Path) -> int:
    """Run schemathesis by the document that the server gives; its report goes to `log`.

    Returns:
        its exit status: 1 when an answer is none that the document allows
    """
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--no-color"]
    command += ["--seed", str(seed), "--max-time", str(max(1, round(duration_s)))]
    command += ["--checks", ",".join(CHECKS)]
    command += ["--request-timeout", str(ANSWER_S), "--continue-on-failure", "--generation-database", "none"]
    root = Path(__file__).parent.parent
    hooks = {
        "SCHEMATHESIS_HOOKS": "fuzz.contract",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **hooks}
    with log.open("w") as output:  # beside it schemathesis keeps what it has seen
        done = subprocess.run(command, env=environment, cwd=log.parent, stdout=output, check=False)
    return done.returncode
