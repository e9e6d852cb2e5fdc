"""The gate before TorchServe, and behind the proxy: framing, bounds, forms, deadlines, on real servers."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
import yaml
from closed_loop import Load

from archive.read import Archive
from bench.faults.processes import Running, proxy, replica

END = b"\r\n"
FORM = "multipart/form-data; boundary=b"
# The attack that ended the front end: 4 MB of parts without a byte in them.
EMPTY_PART = b'--b\r\nContent-Disposition: form-data; name=""\r\n\r\n\r\n'
BOMB = EMPTY_PART * ((4 << 20) // len(EMPTY_PART) - 10) + b"--b--\r\n"


@pytest.fixture(scope="module")
def policy_proxy(policy_replica: Running, folder: Path) -> Iterator[Running]:
    with proxy(folder, policy_replica.port) as running:
        yield running


@pytest.fixture(scope="module", params=["gate", "proxy", "policy's gate", "policy's proxy"])
def hop(
    request: pytest.FixtureRequest,
    lasting_replica: Running,
    open_proxy: Running,
    policy_replica: Running,
    policy_proxy: Running,
) -> Running:
    """Each way to a model: a gate or a proxy, before a handler of TorchServe's kind or before ours."""
    hops = {"gate": lasting_replica, "proxy": open_proxy}
    return (hops | {"policy's gate": policy_replica, "policy's proxy": policy_proxy})[request.param]


def exchanged(port: int, sent: bytes, timeout_s: float = 15.0) -> tuple[int, bytes, bytes]:
    """Send bytes and return status, head and body of the first answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        return answered(connection)


def answered(connection: socket.socket) -> tuple[int, bytes, bytes]:
    said = b""
    while b"\r\n\r\n" not in said:
        if not (piece := connection.recv(65536)):
            pytest.fail(f"closed after {said!r}")
        said += piece
    head, _, body = said.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1]) for line in head.lower().split(END) if line.startswith(b"content-length")
    ]
    while lengths and len(body) < lengths[0] and (piece := connection.recv(65536)):
        body += piece
    return int(head.split(b" ")[1]), head, body


def assert_refused(port: int, sent: bytes, status: int | None = None) -> dict[str, object]:
    """Check that bytes get a 4xx in the contract's JSON, and return its error."""
    got, head, body = exchanged(port, sent)
    assert 400 <= got < 500, (got, body)
    assert status in (None, got), (got, body)
    assert b"content-type: application/json" in head.lower()
    error = json.loads(body)["error"]
    assert set(error) == {"code", "field", "message"}
    return error


def request_of(
    body: bytes, content_type: str = FORM, *lines: bytes, path: bytes = b"/predictions/vla"
) -> bytes:
    head = [b"POST %b HTTP/1.1" % path, b"Host: x", b"Content-Type: " + content_type.encode(), *lines]
    return END.join([*head, b"Content-Length: %d" % len(body), b"", b""]) + body


def part(name: str, data: bytes = b"x", *lines: bytes) -> bytes:
    head = [b"--b", f'Content-Disposition: form-data; name="{name}"'.encode(), *lines]
    return END.join([*head, b"", data, b""])


def form_with(line: bytes) -> bytes:
    """Return a form whose part has one more header."""
    return request_of(part("a", b"x", line) + b"--b--")


POST = b"POST /predictions/vla HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), id="TLS"),
        pytest.param(b"POST /predictions/vla HTTP/9.9\r\nHost: x\r\nContent-Length: 0\r\n\r\n", id="version"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(POST + b"Content-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(POST + b"Content-Length: 1e3\r\n\r\n", id="length no number"),
        pytest.param(POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", id="two lengths"),
        pytest.param(POST + b"Transfer-Encoding: banana\r\n\r\n", id="coding"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc", id="two framings"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", id="chunk"),
        pytest.param(POST + b"A B: c\r\n\r\n", id="header name"),
        pytest.param(b"nonsense\r\n\r\n", id="nonsense"),
        pytest.param(POST + b"X: " + b"x" * 70_000 + b"\r\n\r\n", id="long header"),
        pytest.param(b"POST /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="long path"),
        pytest.param(request_of(b"--b--\r\n", "multipart/form-data; boundary="), id="empty boundary"),
        pytest.param(request_of(b"--b--\r\n", "multipart/form-data"), id="no boundary"),
        pytest.param(request_of(b"--b--\r\n", FORM + "b" * 70), id="long boundary"),
        pytest.param(request_of(b"--b--\r\n"), id="no part"),
        pytest.param(request_of(b"garbage"), id="garbage"),
        pytest.param(request_of(b"--b\r\n\r\nx\r\n--b--\r\n"), id="no disposition"),
        pytest.param(request_of(b"--b\r\nX: y\r\n\r\nx\r\n--b--\r\n"), id="other header"),
        pytest.param(request_of(part("").replace(b'; name=""', b"") + b"--b--"), id="no name"),
        pytest.param(request_of(part("image")[:-2]), id="cut short"),
        pytest.param(request_of(part("image") + b"--b"), id="no end"),
        pytest.param(form_with(b"Content-Transfer-Encoding: base64"), id="base64"),
        pytest.param(form_with(b"Content-Type: text/plain; charset=bogus"), id="charset"),
        pytest.param(form_with(b"X: " + b"y" * 2000), id="long part head"),
        pytest.param(request_of(part("a") + b"--b--", FORM + "; charset=bogus"), id="form's charset"),
        pytest.param(request_of(b"{}", "application/json; charset=bogus"), id="json's charset"),
        pytest.param(request_of(BOMB), id="empty parts"),
        pytest.param(request_of(b"a=1&" * 20_000, "application/x-www-form-urlencoded"), id="urlencoded"),
    ],
)
def test_bad_framing_is_4xx_in_json(hop: Running, sent: bytes) -> None:
    assert_refused(hop.port, sent)


def test_a_field_that_is_there_twice_is_named(hop: Running) -> None:
    error = assert_refused(
        hop.port, request_of(part("state") + part("command") + part("state") + b"--b--"), 400
    )

    assert (error["code"], error["field"], error["message"]) == ("malformed_body", "state", "is there twice")


def example_of(path: Path) -> tuple[dict[str, tuple[str, bytes]], dict[str, str]]:
    example = Archive.open(path).example
    assert example is not None
    return example.images, example.fields


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_bodies_of_empty_parts_harm_nobody(
    policy_replica: Running, policy_proxy: Running, policy_archive: Path, count: int
) -> None:
    """Formerly 60 of them ended the Java front end."""
    java = policy_replica.java
    before_s = sum(java.cpu_times()[:2])
    images, fields = example_of(policy_archive)
    with Load(f"{policy_proxy.url}/predictions/vla", 4, images, fields) as load:
        load.wait_for(20)
        for index in range(count):
            port = (policy_replica if index % 25 else policy_proxy).port  # which answers them late
            assert assert_refused(port, request_of(BOMB), 400)["code"] == "malformed_body"
        load.wait_for(20)

    assert set(load.outcomes) == {200}
    assert java.is_running()
    print(f"Java took {sum(java.cpu_times()[:2]) - before_s:.1f} s of CPU time meanwhile")


def test_forms_reach_a_policy_unchanged(policy_replica: Running, policy_archive: Path) -> None:
    """As MessagePack behind the gate; to TorchServe directly as the form that they are."""
    images, fields = example_of(policy_archive)
    direct = f"http://127.0.0.1:{policy_replica.torchserve_port}/predictions/vla"
    gate, torchserve = (
        requests.post(url, files=images, data=fields, timeout=30).json()
        for url in (policy_replica.predictions_url, direct)
    )

    assert gate["actions"] == torchserve["actions"]
    wrong = requests.post(policy_replica.predictions_url, files={"imag": b"x"}, data=fields, timeout=30)
    assert (wrong.status_code, wrong.json()["error"]["field"]) == (400, "imag")
    text = requests.post(policy_replica.predictions_url, data=b"x", timeout=30)
    assert (text.status_code, text.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_chunks_expectations_and_pipelines(lasting_replica: Running) -> None:
    chunked = requests.post(lasting_replica.predictions_url, data=iter([b"a" * 70_000, b"b"]), timeout=10)
    assert chunked.status_code == 200
    with socket.create_connection(("127.0.0.1", lasting_replica.port), timeout=10) as connection:
        connection.sendall(POST + b"Content-Type: x/y\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"x" + request_of(b"a", "x/y", b"X-Request-Id: second") * 2)
        ids = []
        for _ in range(3):
            status, _, body = answered_once(connection)
            assert status == 200
            ids.append(json.loads(body)["request_id"])
    assert ids[1:] == ["second"] * 2


def answered_once(connection: socket.socket) -> tuple[int, bytes, bytes]:
    """Read exactly one answer, as others follow on the same connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    length = next(int(line.split(b":")[1]) for line in head.lower().split(END) if b"content-length" in line)
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return int(head.split(b" ")[1]), head, body


def test_sizes_are_limited_at_the_gate(lasting_replica: Running) -> None:
    for body in (b"x" * ((4 << 20) + 1), iter([b"x" * (1 << 20)] * 5)):
        answer = requests.post(lasting_replica.predictions_url, data=body, timeout=10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert requests.post(lasting_replica.predictions_url, data=b"x" * (4 << 20), timeout=10).ok


def test_what_the_gate_refuses_is_counted(lasting_replica: Running) -> None:
    url = f"http://127.0.0.1:{lasting_replica.port + 1}/metrics"

    def refused() -> int:
        lines = requests.get(url, timeout=10).text.splitlines()
        (line,) = [
            line for line in lines if line.startswith('vla_gate_refusals_total{code="malformed_body"}')
        ]
        return int(line.split()[-1])

    before = refused()
    assert_refused(lasting_replica.port, request_of(b"garbage"))
    assert refused() == before + 1


def test_deadlines_are_kept_whatever_the_worker_does(
    policy_replica: Running, policy_proxy: Running, policy_archive: Path
) -> None:
    images, fields = example_of(policy_archive)
    worker = policy_replica.worker
    late_ms: dict[int, list[float]] = {}
    worker.send_signal(signal.SIGSTOP)
    try:
        for running in (policy_replica, policy_proxy):
            for deadline_ms in (100, 150, 200):
                started = time.monotonic()
                answer = requests.post(
                    running.predictions_url,
                    files=images,
                    data=fields | {"deadline_ms": str(deadline_ms)},
                    timeout=30,
                )
                late_ms.setdefault(running.port, []).append((time.monotonic() - started) * 1000 - deadline_ms)
                assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_expired")
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(signal.SIGCONT)
    print(f"later than the deadline by [ms]: {late_ms}")
    assert all(-1 < min(late) < 50 for late in late_ms.values())


@pytest.mark.parametrize("kind", ["json", "msgpack"])
def test_deadlines_are_read_in_every_kind_of_body(policy_replica: Running, kind: str) -> None:
    import msgspec  # noqa: PLC0415

    body = {"image": "", "command": 'say "deadline_ms": 5', "deadline_ms": 120.5}
    data = msgspec.json.encode(body) if kind == "json" else msgspec.msgpack.encode(body)
    worker = policy_replica.worker
    worker.send_signal(signal.SIGSTOP)
    try:
        headers = {"Content-Type": f"application/{kind}"}
        answer = requests.post(policy_replica.predictions_url, data=data, headers=headers, timeout=30)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(signal.SIGCONT)

    assert (answer.status_code, answer.json()["error"]["message"]) == (504, "no answer within 120.5 ms")


def test_a_hung_worker_is_replaced(meant: Path, folder: Path) -> None:
    """Stopped, it answers nothing; after some seconds its batch is given up, and a fresh worker serves."""
    images, fields = example_of(meant)
    with replica(meant, folder) as running:
        worker = running.worker
        worker.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        asked = {"files": images, "data": fields | {"deadline_ms": "200"}, "timeout": 30}
        statuses, given_up_s = [], 0.0
        while not statuses or statuses[-1] != 200:
            statuses.append(requests.post(running.predictions_url, **asked).status_code)
            assert time.monotonic() - started < 60, statuses
            time.sleep(0.05)
            if not given_up_s and not worker.is_running():
                given_up_s = time.monotonic() - started
        took_s = time.monotonic() - started

    print(f"a stopped worker was given up after {given_up_s:.1f} s, another served after {took_s:.1f} s")
    assert set(statuses) <= {504, 500, 200}
    with zipfile.ZipFile(meant) as archive:
        timer_s = yaml.safe_load(archive.read("model-config.yaml"))["responseTimeout"]
    assert 0 < given_up_s < timer_s + 3  # 5 s, and more where a busy machine made the archive


def test_slow_bodies_do_not_take_what_fast_ones_need(lasting_replica: Running, folder: Path) -> None:
    keys = folder / "shared_key"
    keys.write_text("shared robots\n")
    stop = threading.Event()

    def dribble(port: int) -> None:
        while not stop.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), timeout=1) as slow,
            ):
                slow.sendall(
                    POST + b"X-API-Key: shared\r\nContent-Type: x/y\r\nContent-Length: 100000\r\n\r\n"
                )
                while not stop.is_set():
                    slow.sendall(b"x")
                    stop.wait(0.5)

    with proxy(folder, lasting_replica.port, AUTH="keys", KEYS_FILE=keys) as front:
        threads = [threading.Thread(target=dribble, args=(front.port,)) for _ in range(160)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        try:
            statuses = [
                requests.post(
                    front.predictions_url, data=b"x", headers={"X-API-Key": "shared"}, timeout=10
                ).status_code
                for _ in range(100)
            ]
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    assert statuses == [200] * 100
    assert os.path.exists(f"/proc/{lasting_replica.process.pid}")
