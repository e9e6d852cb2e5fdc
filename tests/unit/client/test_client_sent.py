"""What a client sends, and over which connections: pictures cut and encoded, fields as they are, TLS."""

import dataclasses
import io
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import PIL.Image
import pytest
from policy_server import ANSWER, MSGPACK, PICTURE, Server, running_server

from vla_client import Observation, PolicyError, PolicyUnavailable, RemotePolicy, RequestRefused
from vla_client.connection import KeptConnectionClosed, _OneWrite
from vla_client.observation import encode

OBSERVATION = Observation(PICTURE, "go")


@pytest.fixture
def server():
    with running_server() as running:
        yield running


def test_a_plain_array_is_a_jpeg_of_little_loss() -> None:
    data = OBSERVATION.encoded()["image"]
    assert isinstance(data, bytes)
    picture = PIL.Image.open(io.BytesIO(data))

    assert picture.format == "JPEG"
    # Quality 95 of the standard's tables; no colour is thinned out: every component is sampled once a pixel.
    reference = io.BytesIO()
    PIL.Image.fromarray(PICTURE).save(reference, "JPEG", quality=95, subsampling=0)
    assert data == reference.getvalue()


def test_a_png_is_what_it_says() -> None:
    picture = PIL.Image.open(io.BytesIO(encode(PICTURE, "png")))

    assert picture.format == "PNG"
    np.testing.assert_array_equal(np.asarray(picture), PICTURE)


def stripes(height: int, width: int) -> np.ndarray:
    """Return a picture whose red is the row and whose green is the column."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows, columns, rows * 0], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "top", "left"), [(20, 47, 0, 13), (47, 20, 13, 0), (20, 20, 0, 0), (20, 21, 0, 0)]
)
def test_raw_pixels_are_cut_to_the_central_square(height: int, width: int, top: int, left: int) -> None:
    sent = Observation(stripes(height, width), "go").encoded("raw", 20)["image"]

    assert isinstance(sent, dict)
    assert (sent["shape"], sent["dtype"]) == ([20, 20, 3], "uint8")
    pixels = np.frombuffer(sent["data"], np.uint8).reshape(20, 20, 3)
    np.testing.assert_array_equal(pixels, stripes(height, width)[top : top + 20, left : left + 20])


def test_the_shortest_edge_is_brought_to_the_size() -> None:
    sent = Observation(stripes(40, 100), "go").encoded("raw", 20)["image"]

    assert isinstance(sent, dict)
    pixels = np.frombuffer(sent["data"], np.uint8).reshape(sent["shape"]).astype(float)
    assert pixels.shape == (20, 20, 3)
    # Halved, and the middle 20 of 50 columns: column i shows the original's 2 * (15 + i) and the next one.
    np.testing.assert_allclose(pixels[10, :, 1], 2 * (15 + np.arange(20)) + 0.5, atol=1)
    np.testing.assert_allclose(pixels[:, 10, 0], 2 * np.arange(20) + 0.5, atol=1)


def test_what_is_smaller_than_the_size_stays_whole() -> None:
    sent = Observation(stripes(19, 40), "go").encoded("raw", 20)["image"]
    whole = Observation(stripes(19, 40), "go").encoded("raw")["image"]

    assert sent == whole == {"shape": [19, 40, 3], "dtype": "uint8", "data": stripes(19, 40).tobytes()}


def test_values_are_those_that_were_given() -> None:
    assert Observation(PICTURE, "").values() == {}
    full = Observation(PICTURE, "go", [0.5], seed=0, deadline_ms=0.5, previous=[1.0], delay=0)
    assert full.values() == {
        "command": "go",
        "state": [0.5],
        "seed": 0,
        "deadline_ms": 0.5,
        "previous": [1.0],
        "delay": 0,
    }
    assert full.texts() == {
        "command": "go",
        "state": "[0.5]",
        "seed": "0",
        "deadline_ms": "0.5",
        "previous": "[1.0]",
        "delay": "0",
    }


@pytest.mark.parametrize("field", ["state", "previous"])
@pytest.mark.parametrize("values", [[1.0], [[1.0, 2.0], [3.0, 4.0]]])
def test_one_step_or_several_are_taken(field: str, values: Any) -> None:
    assert Observation(PICTURE, "go", **{field: values}).values()[field] == values


@pytest.mark.parametrize("field", ["state", "previous"])
@pytest.mark.parametrize("values", [[[[1.0]]], 1.0, [float("inf"), 0.0], [[0.0, float("nan")]]])
def test_neither_is_anything_else(field: str, values: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be a list of finite numbers, got shape "):
        Observation(PICTURE, "go", **{field: values})


@pytest.mark.parametrize("shape", [(24, 32, 1), (24, 32, 4), (32, 3), (3, 24, 32)])
def test_a_picture_has_three_channels(shape: tuple[int, ...]) -> None:
    message = f"image must be uint8 [H, W, 3] RGB, got uint8 {list(shape)}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Observation(np.zeros(shape, np.uint8), "go")


def test_an_observation_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        OBSERVATION.command = "stop"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"\x89PNG\r\n", "image/png"),
        (b"RIFF....WEBPVP8 ", "image/webp"),
        (b"RIFF....AVI LIST", "application/octet-stream"),
        (b"FORM....WEBP", "application/octet-stream"),
        (b"plain", "application/octet-stream"),
    ],
)
def test_files_are_named_by_their_first_bytes(server: Server, data: bytes, kind: str) -> None:
    with RemotePolicy(server.url) as policy:
        policy.infer(Observation(data, "go"))
    assert server.requests[0][2]["image"] == (kind, data)


@pytest.mark.parametrize("body", ["multipart", "msgpack"])
def test_every_request_has_its_headers(server: Server, body: Any) -> None:
    with RemotePolicy(server.url, body=body, headers={"X-Site": "lab"}, model="vla/2") as policy:
        policy.infer(OBSERVATION)
    path, headers, _ = server.requests[0]
    assert path == "/predictions/vla/2"
    assert headers["x-site"] == "lab"
    assert "x-api-key" not in headers
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    assert headers["accept"] == (MSGPACK if body == "msgpack" else "application/json")
    assert headers["content-type"].startswith(MSGPACK if body == "msgpack" else "multipart/form-data")


def test_a_policy_asks_as_it_says_by_default(server: Server) -> None:
    with RemotePolicy(server.url) as policy:
        assert policy.connections == 8
        assert policy.url == f"{server.url}/predictions/vla"
        server.wait_s = 1.3
        with pytest.raises(PolicyUnavailable, match=r" within 1\.0 s: "):
            policy.infer(OBSERVATION)


@pytest.mark.parametrize(("option", "least"), [("size", 1), ("connections", 1), ("timeout_s", 1e-9)])
def test_the_least_of_an_option_is_taken(option: str, least: float) -> None:
    RemotePolicy("https://127.0.0.1:1", **{option: least}).close()  # pyright: ignore[reportArgumentType]


def test_raw_pixels_may_travel_in_msgpack_alone(server: Server) -> None:
    with RemotePolicy(server.url, encoding="raw", body="msgpack") as policy:
        policy.infer(OBSERVATION)
    assert server.requests[0][1]["content-type"] == MSGPACK


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ({"error": {"message": "m"}}, ("http_400", None, "m")),
        ({"error": {"code": "c", "field": "f"}}, ("c", "f", "")),
        ({"message": "m"}, ("http_400", None, "m")),
        ({"type": "T", "message": "m"}, ("T", None, "m")),
        ({"neither": 1}, ("http_400", None, '{"neither": 1}')),
        ([1], ("http_400", None, "[1]")),
    ],
)
def test_a_refusal_in_any_words_is_read(server: Server, answer: object, shown: tuple) -> None:
    server.status, server.answer = 400, json.dumps(answer)
    with RemotePolicy(server.url) as policy, pytest.raises(RequestRefused) as caught:
        policy.infer(OBSERVATION)
    error = caught.value
    assert (error.code, error.field, error.message) == shown
    assert error.retry_after_s is None


@pytest.mark.parametrize("size", [199, 200, 201, 5000])
def test_of_a_long_page_the_first_words_are_shown(server: Server, size: int) -> None:
    server.status, server.answer, server.kind = 500, b"\xff" + b"x" * (size - 1), "text/html"
    with RemotePolicy(server.url) as policy, pytest.raises(PolicyError) as caught:
        policy.infer(OBSERVATION)
    # A byte that is no text is one replacement character.
    assert caught.value.message == "\N{REPLACEMENT CHARACTER}" + "x" * (min(size, 200) - 1)


def test_an_answer_in_msgpack_that_is_none_is_named(server: Server) -> None:
    server.answer, server.kind = b"\xc1", MSGPACK
    message = rf"^the answer from {server.url}/predictions/vla is not msgpack \({MSGPACK}\): "
    with RemotePolicy(server.url) as policy, pytest.raises(Exception, match=message):
        policy.infer(OBSERVATION)


def hung_up(*_: object) -> None:
    raise BrokenPipeError(32, "Broken pipe")


def test_a_write_that_fails_says_whether_the_connection_had_served(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that was never sent may go once more; a first one that fails has failed."""
    body = {"body": msgspec.msgpack.encode({}), "headers": {"Content-Type": MSGPACK}}
    kept, fresh = (_OneWrite("127.0.0.1", server.server_port) for _ in range(2))
    with closing(kept), closing(fresh):
        kept.request("POST", "/", **body)
        kept.getresponse().read()
        fresh.connect()
        monkeypatch.setattr(socket.socket, "sendall", hung_up)

        with pytest.raises(KeptConnectionClosed, match="Broken pipe"):
            kept.request("POST", "/", **body)
        with pytest.raises(BrokenPipeError):
            fresh.request("POST", "/", **body)


def test_outside_a_request_nothing_is_held_back(server: Server) -> None:
    """As the standard library opens a tunnel through a proxy: piece by piece."""
    with closing(_OneWrite("127.0.0.1", server.server_port)) as connection:
        connection.connect()
        connection.send(f"POST /piece HTTP/1.1\r\nContent-Type: {MSGPACK}\r\n".encode())
        connection.send(b"Content-Length: 1\r\n\r\n\x80")
        until_s = time.monotonic() + 10.0
        while not server.requests and time.monotonic() < until_s:
            time.sleep(0.01)
    assert [request[0] for request in server.requests] == ["/piece"]


def test_a_closed_connection_begins_anew(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had served before counts no more."""
    body = {"body": msgspec.msgpack.encode({}), "headers": {"Content-Type": MSGPACK}}
    with closing(_OneWrite("127.0.0.1", server.server_port)) as again:
        again.request("POST", "/", **body)
        again.getresponse().read()
        again.close()
        again.connect()
        monkeypatch.setattr(socket.socket, "sendall", hung_up)

        with pytest.raises(BrokenPipeError):
            again.request("POST", "/", **body)


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority's `ca.crt`, and `host` and `robot` that it signed for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certificates")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(folder, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("host", "robot"):
        openssl(folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")
    both = (folder / "robot.crt").read_text() + (folder / "robot.key").read_text()
    (folder / "both.pem").write_text(both)
    return folder


class Quiet(Server):
    """Says nothing of a handshake that fails."""

    def handle_error(self, request, client_address):
        pass


@pytest.fixture
def guarded(certificates: Path):
    """A server behind TLS that wants a certificate of the same authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "host.crt", certificates / "host.key")
    context.load_verify_locations(certificates / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    with Quiet() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.url = server.url.replace("http://", "https://")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_tls_both_ways(guarded: Server, certificates: Path) -> None:
    ca = certificates / "ca.crt"
    pair = (certificates / "robot.crt", certificates / "robot.key")
    for cert in (pair, certificates / "both.pem"):
        with RemotePolicy(guarded.url, 10.0, ca=ca, cert=cert) as policy:
            assert [policy.infer(OBSERVATION).request_id for _ in range(2)] == [ANSWER["request_id"]] * 2
    assert len(guarded.connections) == 2  # two requests over each


def test_a_server_of_an_unknown_authority_is_not_trusted(guarded: Server, certificates: Path) -> None:
    message = rf"^no TLS with {guarded.url}/predictions/vla: is it https, .*certificate verify failed"
    with RemotePolicy(guarded.url, 10.0) as policy, pytest.raises(PolicyUnavailable, match=message):
        policy.infer(OBSERVATION)
    assert guarded.requests == []


def test_the_key_must_be_there(certificates: Path) -> None:
    with pytest.raises(ValueError, match=r"^no certificate file at /nowhere/robot\.key$"):
        RemotePolicy("https://x", cert=(certificates / "robot.crt", "/nowhere/robot.key"))
    with pytest.raises(ValueError, match=r"^no certificate file at /nowhere/both\.pem$"):
        RemotePolicy("https://x", cert="/nowhere/both.pem")
