"""The proxy: what reaches a replica, what is refused, and how, in front of a real TorchServe."""

import contextlib
import json
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest
import requests
import yaml
from closed_loop import in_flight

from bench.faults.processes import ROOT, Running, proxy


def post(
    url: str,
    data: Mapping[str, str] | bytes = MappingProxyType({"command": "x"}),
    headers: dict[str, str] | None = None,
    *,
    verify: str | bool = True,
    cert: tuple[str, str] | None = None,
) -> requests.Response:
    body, files = (data, None) if isinstance(data, bytes) else (None, dict(data))
    return requests.post(url, body, files=files, headers=headers, verify=verify, cert=cert, timeout=30)


def refusal(answer: requests.Response) -> tuple[int, str]:
    """Return status and code of a refusal, whose body must be the contract's JSON."""
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert set(body["error"]) == {"code", "field", "message"}
    return answer.status_code, body["error"]["code"]


def test_prediction_is_answered(open_proxy: Running) -> None:
    answer = post(open_proxy.predictions_url)

    assert (answer.status_code, answer.json()["actions"]) == (200, [[0.5, -0.25]])
    assert answer.headers["Content-Type"] == "application/json"
    assert post(open_proxy.predictions_url + "/1.0").json()["version"] == "1.0"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", (404, "not_found")),
        ("GET", "/ping", (404, "not_found")),
        ("GET", "/models", (404, "not_found")),
        ("GET", "/metrics", (404, "not_found")),
        ("GET", "/replica/predictions/vla", (404, "not_found")),
        ("PUT", "/models/vla?min_worker=0", (404, "not_found")),
        ("POST", "/workflows?url=x", (404, "not_found")),
        ("POST", "/predictions/vla/1.0/more", (404, "not_found")),
        ("POST", "/predictions/../models", (404, "not_found")),
        ("POST", "/explanations/vla", (404, "not_found")),
        ("POST", "/predictions/other", (404, "not_found")),
        ("POST", "/predictions/vla/9.9", (404, "not_found")),
        ("GET", "/predictions/vla", (405, "method_not_allowed")),
        ("DELETE", "/predictions/vla", (405, "method_not_allowed")),
    ],
)
def test_only_predictions_pass(
    open_proxy: Running, method: str, path: str, expected: tuple[int, str]
) -> None:
    request = requests.Request(method, open_proxy.url, data=b"").prepare()
    request.url = open_proxy.url + path  # as it is: `requests` would resolve `..`
    with requests.Session() as session:
        answer = session.send(request, timeout=10)

    assert refusal(answer) == expected


def test_health(open_proxy: Running) -> None:
    for path, status in [("/health/live", "live"), ("/health/ready", "ready")]:
        answer = requests.get(open_proxy.url + path, timeout=10)
        assert (answer.status_code, answer.json()) == (200, {"status": status})


def test_the_contract_is_served_as_it_is_written(open_proxy: Running, lasting_replica: Running) -> None:
    written = yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text())
    for running in (open_proxy, lasting_replica):
        answer = requests.get(running.url + "/openapi.json", timeout=10)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
        assert answer.json() == written
    assert refusal(requests.post(open_proxy.url + "/openapi.json", timeout=10)) == (403, "forbidden")


def test_sizes_are_limited(open_proxy: Running) -> None:
    assert refusal(post(open_proxy.predictions_url, b"x" * ((4 << 20) + 1))) == (413, "too_large")
    assert post(open_proxy.predictions_url, b"x" * (4 << 20)).status_code == 200
    long = {"X-Long": "x" * 9000}
    assert refusal(post(open_proxy.predictions_url, headers=long)) == (400, "bad_request")


def test_chunked_bodies_are_refused(open_proxy: Running) -> None:
    answer = requests.post(open_proxy.predictions_url, data=iter([b"x"]), timeout=10)

    assert refusal(answer) == (411, "length_required")


def said_to_garbage(running: Running) -> bytes:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        return connection.makefile("rb").read()


def test_garbage_is_refused_as_json(open_proxy: Running) -> None:
    head, body = said_to_garbage(open_proxy).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "bad_request"


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


def test_policys_own_503_passes(open_proxy: Running) -> None:
    answer = post(open_proxy.predictions_url, {"unsafe": "1"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unsafe_action")


def test_dying_worker_is_asked_again(open_proxy: Running, folder: Path) -> None:
    answer = post(open_proxy.predictions_url, {"die_once": str(folder / "died")})

    assert (answer.status_code, (folder / "died").exists()) == (200, True)


def test_request_ids(open_proxy: Running) -> None:
    named = post(open_proxy.predictions_url, headers={"X-Request-Id": "robot-7.42"})
    assert named.headers["X-Request-Id"] == named.json()["seen"]["x-request-id"] == "robot-7.42"
    odd = post(open_proxy.predictions_url, headers={"X-Request-Id": 'a" b'})
    assert len(odd.headers["X-Request-Id"]) == 32
    lines = [json.loads(line) for line in open_proxy.log.read_text().splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line["id"] == "robot-7.42"] == [200]


def test_headers_that_command_torchserve_are_dropped(open_proxy: Running) -> None:
    headers = {"describe": "True", "explain": "True", "url_path": "x", "X-API-Key": "secret"}

    seen = post(open_proxy.predictions_url, headers=headers).json()["seen"]

    assert not {"describe", "x-api-key"} & set(seen)
    assert (seen["explain"], seen["url_path"]) == ("False", "")  # TorchServe's own
    assert seen["x-request-start"].startswith("t=")


@pytest.mark.parametrize("off_s", [-3600, 3600])
def test_a_clients_clock_says_nothing_about_age(
    open_proxy: Running, lasting_replica: Running, off_s: float
) -> None:
    stated = {"X-Request-Start": f"t={time.time() + off_s:.3f}"}
    for url in (open_proxy.predictions_url, lasting_replica.predictions_url):
        before_s = time.time()
        stamped = post(url, headers=stated).json()["seen"]["x-request-start"]

        assert before_s - 0.01 <= float(stamped.removeprefix("t=")) <= time.time()


def test_one_id_from_the_proxy_to_the_answer(open_proxy: Running) -> None:
    answer = post(open_proxy.predictions_url)

    assert answer.headers["X-Request-Id"] == answer.json()["request_id"]


def test_api_keys(lasting_replica: Running, folder: Path) -> None:
    keys = folder / "api_keys"
    keys.write_text("# clients\nk-1 robot-1\nk-2 robot-2\n")
    with proxy(folder, lasting_replica.port, AUTH="keys", KEYS_FILE=keys) as running:
        assert refusal(post(running.predictions_url)) == (401, "unauthorized")
        assert requests.get(running.url + "/openapi.json", timeout=10).ok
        assert refusal(post(running.predictions_url, headers={"X-API-Key": "k-3"})) == (401, "unauthorized")
        assert post(running.predictions_url, headers={"X-API-Key": "k-1"}).ok
        assert post(running.predictions_url, headers={"Authorization": "Bearer k-2"}).ok

    clients = [json.loads(line)["client"] for line in running.log.read_text().splitlines() if "POST" in line]
    assert clients == ["", "", "robot-1", "robot-2"]
    assert "k-1" not in running.log.read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"AUTH": "keys", "KEYS_FILE": "/nonexistent"}, "AUTH=keys needs /nonexistent"),
        ({"AUTH": "mtls"}, "AUTH=mtls needs "),
        ({"AUTH": "maybe"}, "AUTH is keys, mtls or none, got maybe"),
    ],
)
def test_missing_settings_are_refused(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    environment = {"PATH": "/usr/bin:/bin", "FOLDER": str(tmp_path), "TLS_FOLDER": str(tmp_path), **settings}
    run = subprocess.run(
        [ROOT / "docker/proxy/start"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )

    assert run.returncode == 1
    assert run.stderr.startswith("error: " + said)


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


def make_certificates(folder: Path) -> None:
    """Make a certificate authority, and a server's and a robot's certificate of it."""
    folder.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
    for name, subject in [("tls", "/CN=localhost"), ("robot", "/CN=robot-1")]:
        openssl("req", "-x509", *new, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", subject,
                "-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "subjectAltName=DNS:localhost")  # fmt: skip


def test_mutual_tls(lasting_replica: Running, folder: Path) -> None:
    tls = folder / "certificates"
    make_certificates(tls)
    with proxy(folder, lasting_replica.port, AUTH="mtls", TLS_FOLDER=tls) as running:
        url = f"https://localhost:{running.port}/predictions/vla"
        answer = post(url, verify=str(tls / "ca.crt"), cert=(str(tls / "robot.crt"), str(tls / "robot.key")))
        assert answer.status_code == 200
        assert refusal(post(url, verify=str(tls / "ca.crt"))) == (400, "no_certificate")
        assert refusal(post(running.predictions_url)) == (400, "tls_required")
        context = ssl.create_default_context(cafile=str(tls / "ca.crt"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("localhost", running.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            assert wrapped.version() == "TLSv1.2"
        assert '"client":"CN=robot-1"' in running.log.read_text()
