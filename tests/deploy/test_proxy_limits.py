"""The proxy's limits: slow clients, full queues, rates and bytes, and who goes on after a refusal."""

import contextlib
import json
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests
from closed_loop import in_flight
from test_proxy import post, refusal, said_to_garbage

from bench.faults.processes import Running, proxy


def dribble(port: int, pause_s: float, took_s: dict[float, tuple[float, bytes]]) -> None:
    """Send a body byte by byte; record how long the connection stayed open, and the answer."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"POST /predictions/vla HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        connection.settimeout(pause_s)
        while time.monotonic() - started < 40:
            try:
                said = connection.recv(1000)
            except TimeoutError:
                connection.sendall(b"x")
            else:
                took_s[pause_s] = time.monotonic() - started, said
                return


def test_slow_clients_are_cut_off(open_proxy: Running) -> None:
    took_s: dict[float, tuple[float, bytes]] = {}
    pauses = (0.2, 30.0)  # a byte now and then; and silence
    threads = [threading.Thread(target=dribble, args=(open_proxy.port, pause, took_s)) for pause in pauses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for pause, limit_s in zip(pauses, (10.0, 5.0), strict=True):
        duration_s, said = took_s[pause]
        assert limit_s - 0.5 < duration_s < limit_s + 3
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "slow_request"' in said


def test_slow_headers_are_cut_off(open_proxy: Running) -> None:
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", open_proxy.port), timeout=30) as connection:
        connection.sendall(b"POST /predictions/vla HT")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000) == b""

    assert 4 < time.monotonic() - started < 9


def test_full_queue_is_429(open_proxy: Running) -> None:
    with in_flight(open_proxy.predictions_url, count=40, sleep_s=0.3) as answers:
        pass

    assert len(answers) == 40
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 16 <= 40 - len(refused) < 30  # at least the queue's length is answered
    assert {refusal(answer) for answer in refused} == {(429, "overloaded")}
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}


class Slow(BaseHTTPRequestHandler):
    """A replica that is ready, and takes 3 s for an answer."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        time.sleep(3)
        self.do_GET()


class Many(ThreadingHTTPServer):
    request_queue_size = 512


def test_too_many_at_once_are_refused_at_once(folder: Path) -> None:
    """128 of one client are in flight at most; one more is no death of a replica, and not asked again."""
    request = b"POST /predictions/vla HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    with Many(("127.0.0.1", 0), Slow) as slow, contextlib.ExitStack() as stack:
        threading.Thread(target=slow.serve_forever, daemon=True).start()
        stack.callback(slow.shutdown)
        running = stack.enter_context(proxy(folder, slow.server_port, RATE="10000r/s"))
        asked = [
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port))) for _ in range(140)
        ]
        for client in asked:
            client.sendall(request)
        time.sleep(1.5)
        answered, _, _ = select.select(asked, [], [], 0)
        statuses = [client.recv(1 << 16)[:12] for client in answered]
        lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]

    assert statuses == [b"HTTP/1.1 429"] * 12
    assert [line["attempts"] for line in lines if line["status"] == 429] == ["1"] * 12


def test_rate_is_limited(lasting_replica: Running, folder: Path) -> None:
    with proxy(folder, lasting_replica.port, RATE="1r/s") as running:
        statuses = [post(running.predictions_url).status_code for _ in range(230)]
        answer = post(running.predictions_url)

    assert statuses.count(200) in range(200, 225)
    assert refusal(answer) == (429, "overloaded")
    assert answer.headers["Retry-After"] == "1"


def test_bytes_are_limited(lasting_replica: Running, folder: Path) -> None:
    """The least limit holds one body of 4 MiB in a quarter of a second, and little more."""
    large = {"command": "x" * 3_900_000}
    with proxy(folder, lasting_replica.port, BYTES_PER_S=1) as running:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: post(running.predictions_url, large), range(4)))
        refused = [answer for answer in answers if answer.status_code == 429]
        time.sleep(0.3)
        again = post(running.predictions_url, large)

    assert refused
    assert {refusal(answer) for answer in refused} == {(429, "overloaded")}
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert again.status_code != 429


def ask(session: requests.Session, running: Running) -> requests.Response:
    return session.post(running.predictions_url, headers={"X-API-Key": "first"}, timeout=5)


def test_who_does_not_heed_refusals_gets_them_late(lasting_replica: Running, folder: Path) -> None:
    """102 within a second at once, the next one a second late; another client is not held."""
    keys = folder / "two_keys"
    keys.write_text("first robot-1\nsecond robot-2\n")
    with proxy(folder, lasting_replica.port, AUTH="keys", KEYS_FILE=keys, RATE="1r/s") as running:
        with requests.Session() as session:
            answers = [ask(session, running)]
            while answers[-1].elapsed.total_seconds() < 0.9 and len(answers) < 3000:
                answers.append(ask(session, running))
        assert answers[-1].elapsed.total_seconds() > 0.9
        assert sum(answer.status_code == 429 for answer in answers) > 100
        assert refusal(answers[-1]) == (429, "overloaded")
        other = post(running.predictions_url, headers={"X-API-Key": "second"})
        assert other.status_code == 200
        assert other.elapsed.total_seconds() < 0.9


def test_who_sends_bad_requests_again_and_again_gets_the_answers_late(
    lasting_replica: Running, folder: Path
) -> None:
    """Twenty within three seconds at once, the next one late; neither its good ones nor another's."""
    keys = folder / "three_keys"
    keys.write_text("first robot-1\nsecond robot-2\n")
    with proxy(folder, lasting_replica.port, AUTH="keys", KEYS_FILE=keys) as running:
        url, first = running.predictions_url, {"X-API-Key": "first"}
        with requests.Session() as session:
            answers = [session.get(url, headers=first, timeout=5)]
            while answers[-1].elapsed.total_seconds() < 0.9 and len(answers) < 1000:
                answers.append(session.get(url, headers=first, timeout=5))
        assert {answer.status_code for answer in answers} == {405}
        assert len(answers) > 20
        assert answers[-1].elapsed.total_seconds() > 0.9
        with ThreadPoolExecutor(30) as pool:  # each of them waits
            held = [pool.submit(session.get, url, headers=first, timeout=5) for _ in range(30)]
            for headers in (first, {"X-API-Key": "second"}):
                good = post(url, headers=headers)
                assert (good.status_code, good.elapsed.total_seconds() < 0.9) == (200, True)
            assert sum(answer.result().elapsed.total_seconds() > 0.9 for answer in held) > 5
        # What is no HTTP has no key: it counts by its address.
        with ThreadPoolExecutor(4) as pool:
            began = time.monotonic()
            assert all(
                said.startswith(b"HTTP/1.1 400 ") for said in pool.map(said_to_garbage, [running] * 30)
            )
            assert time.monotonic() - began > 0.9


def test_whose_large_bodies_were_bad_has_large_ones_refused(lasting_replica: Running, folder: Path) -> None:
    """After 24 MB of bad ones; neither small ones nor another's are refused."""
    keys = folder / "four_keys"
    keys.write_text("first robot-1\nsecond robot-2\n")
    settings = {"AUTH": "keys", "KEYS_FILE": keys, "BYTES_PER_S": 1_000_000_000}
    with proxy(folder, lasting_replica.port, **settings) as running:
        bad, first = running.predictions_url.replace("vla", "other"), {"X-API-Key": "first"}
        large, larger = {"command": "x" * 300_000}, {"command": "x" * 4_000_000}
        assert post(running.predictions_url, large, first).status_code == 200
        with ThreadPoolExecutor(7) as pool:
            answers = list(pool.map(lambda _: post(bad, larger, first), range(7)))
        assert [refusal(answer) for answer in answers] == [(404, "not_found")] * 7

        answer = post(running.predictions_url, large, first)
        assert (refusal(answer), answer.headers["Retry-After"]) == ((429, "overloaded"), "1")
        assert post(running.predictions_url, headers=first).status_code == 200
        assert post(running.predictions_url, large, {"X-API-Key": "second"}).status_code == 200
