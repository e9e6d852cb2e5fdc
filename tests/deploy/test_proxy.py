"""The proxy: what reaches a replica, what is refused, and how, in front of a real TorchServe."""

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import requests
import yaml

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
