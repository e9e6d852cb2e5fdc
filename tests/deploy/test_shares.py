"""The gate's queue: nothing is computed for clients that hung up, and clients share what there is."""

import re
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from bench.faults.processes import Running, proxy

# Of the archive in replicas.py: two batches of 4 within TorchServe, and 20 with its queue of 16.
COMPUTING, WAITING = 8, 12
ONE_S = 0.1


@pytest.fixture(scope="module")
def keyed_proxy(lasting_replica: Running, folder: Path) -> Iterator[Running]:
    keys = folder / "shared_keys"
    keys.write_text("g greedy\nm modest\n")
    with proxy(folder, lasting_replica.port, AUTH="keys", KEYS_FILE=keys) as running:
        yield running


def metric(running: Running, series: str) -> float:
    text = requests.get(f"http://127.0.0.1:{running.port + 1}/metrics", timeout=10).text
    match = re.search(f"^{re.escape(series)} (.+)$", text, re.MULTILINE)
    assert match is not None, f"{series} is not in {text}"
    return float(match[1])


def wait_until_idle(running: Running) -> None:
    deadline = time.monotonic() + 30
    while metric(running, "vla_gate_computing") + metric(running, "vla_gate_waiting"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def form(key: str, **fields: str) -> bytes:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
        for name, text in fields.items()
    ]
    body = "".join([*parts, "--b--\r\n"]).encode()
    head = f"POST /predictions/vla HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n"
    return (
        f"{head}Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


@pytest.mark.parametrize("way", ["gate", "proxy"])
def test_nothing_waits_for_a_client_that_hung_up(
    way: str, lasting_replica: Running, keyed_proxy: Running, folder: Path
) -> None:
    note = folder / f"computed-{way}"
    port = {"gate": lasting_replica, "proxy": keyed_proxy}[way].port
    before = metric(lasting_replica, 'vla_gate_abandoned_total{place="waiting"}')
    asked = form("g", sleep=str(ONE_S), note=str(note))
    clients = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(COMPUTING + WAITING)]
    for client in clients:
        client.sendall(asked)
    deadline = time.monotonic() + 30
    while metric(lasting_replica, "vla_gate_waiting") < WAITING - 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for client in clients:
        client.close()
    wait_until_idle(lasting_replica)

    # What TorchServe has been given can't be taken back; the rest is dropped.
    computed = len(note.read_text())
    assert computed <= COMPUTING + 4
    dropped = metric(lasting_replica, 'vla_gate_abandoned_total{place="waiting"}') - before
    assert dropped + computed == COMPUTING + WAITING
    print(f"{way}: of {COMPUTING + WAITING} requests, {computed} were computed for nobody")


def test_a_greedy_key_starves_nobody(keyed_proxy: Running, lasting_replica: Running) -> None:
    stop = threading.Event()
    greedy: list[tuple[int, float, str | None]] = []
    modest: list[tuple[int, float, str | None]] = []

    def ask(key: str, into: list[tuple[int, float, str | None]]) -> None:
        started = time.monotonic()
        answer = requests.post(
            keyed_proxy.predictions_url, files={"sleep": "0.03"}, headers={"X-API-Key": key}, timeout=30
        )
        into.append((answer.status_code, time.monotonic() - started, answer.headers.get("Retry-After")))

    def keep_asking() -> None:
        while not stop.is_set():
            ask("g", greedy)
            time.sleep(0.05)

    threads = [threading.Thread(target=keep_asking) for _ in range(2 * (COMPUTING + WAITING))]
    for thread in threads:
        thread.start()
    while not any(status == 429 for status, _, _ in greedy):
        time.sleep(0.05)
    for _ in range(15):
        ask("m", modest)
    stop.set()
    for thread in threads:
        thread.join()
    wait_until_idle(lasting_replica)

    assert {status for status, _, _ in modest} == {200}
    assert {status for status, _, _ in greedy} == {200, 429}
    assert {after for status, _, after in greedy if status == 429} == {"1"}
    answered_s = statistics.median(took for status, took, _ in greedy if status == 200)
    refused_s = statistics.median(took for status, took, _ in greedy if status == 429)
    own_s = statistics.median(took for _, took, _ in modest)
    print(f"medians: greedy {answered_s:.3f} s, modest {own_s:.3f} s, refused {refused_s:.3f} s")


def test_clients_take_turns_and_refusals_come_at_once(
    keyed_proxy: Running, lasting_replica: Running, folder: Path
) -> None:
    note = folder / "turns"
    asked = {"sleep": "0.4", "note": str(note)}
    clients = [
        socket.create_connection(("127.0.0.1", keyed_proxy.port), timeout=30)
        for _ in range(COMPUTING + WAITING + 1)
    ]
    for client in clients[:-1]:
        client.sendall(form("g", mark="g", **asked))
    deadline = time.monotonic() + 10
    while metric(lasting_replica, "vla_gate_waiting") < WAITING:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started = time.monotonic()
    clients[-1].sendall(form("g", mark="g", **asked))
    refused = clients[-1].recv(10_000)
    took_s = time.monotonic() - started
    answer = requests.post(
        keyed_proxy.predictions_url,
        files=asked | {"mark": "m"},
        headers={"X-API-Key": "m"},
        timeout=30,
    )
    wait_until_idle(lasting_replica)
    for client in clients:
        client.close()

    assert refused.startswith(b"HTTP/1.1 429 ")
    assert b"Retry-After: 1" in refused
    print(f"refused after {1000 * took_s:.1f} ms")
    assert answer.status_code == 200
    # The modest one makes place for itself, behind what TorchServe has and one turn of the greedy.
    order = note.read_text()
    assert order.count("g") == COMPUTING + WAITING - 1
    assert order.index("m") <= COMPUTING + 4


@pytest.mark.parametrize(
    ("path", "allow"), [("/predictions/vla", b"POST"), ("/health/ready", b"GET"), ("/other", b"POST")]
)
def test_head_is_405_without_a_body(lasting_replica: Running, path: str, allow: bytes) -> None:
    with socket.create_connection(("127.0.0.1", lasting_replica.port), timeout=10) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        said = connection.makefile("rb").read()

    head, body = said.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405 ")
    assert b"allow: " + allow in head
    assert body == b""


def test_the_gates_metrics_exist_from_the_start(lasting_replica: Running) -> None:
    assert metric(lasting_replica, "vla_gate_ready") == 1
    assert metric(lasting_replica, 'vla_gate_refusals_total{code="overloaded"}') >= 0
    assert metric(lasting_replica, 'vla_gate_abandoned_total{place="computing"}') >= 0
    before = metric(lasting_replica, "vla_gate_request_seconds_count")
    fast = metric(lasting_replica, 'vla_gate_request_seconds_bucket{le="0.003"}')

    assert requests.post(lasting_replica.predictions_url, files={"sleep": "0.02"}, timeout=30).ok

    assert metric(lasting_replica, "vla_gate_request_seconds_count") == before + 1
    assert metric(lasting_replica, 'vla_gate_request_seconds_bucket{le="0.003"}') == fast
    assert metric(lasting_replica, 'vla_gate_wait_seconds_bucket{le="+Inf"}') >= 1
