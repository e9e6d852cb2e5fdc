"""The swap, step by step, with a small TorchServe that notes what it is asked and fails where a test says."""

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from archive.read import Archive, Example
from server.errors import SwapError
from server.swap import WARM_UP_REQUESTS, Swap

ACTIONS = ((0.5, -0.25),)
NEW = Archive(
    path=Path("/models/new.mar"),
    name="vla",
    version="2.0",
    handler="vla_handler.py",
    largest_batch=8,
    startup_timeout_s=300.0,
    unpacked_bytes=1,
    policy={"example": {"actions": ACTIONS}},
    example=Example({"image": ("x.png", b"picture")}, {"command": "go"}, ACTIONS),
)


class Small:
    """TorchServe, as far as a swap sees it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.query: dict[str, list[str]] = {}
        self.queries: dict[str, list[dict[str, list[str]]]] = {}
        self.bodies: list[bytes] = []
        # What a path is answered with, before what it would be else: status and body; the last one stays.
        self.answers: dict[str, list[tuple[int, Any]]] = {}

    def answer(self, method: str, url: str, body: bytes) -> tuple[int, Any]:
        parts = urlsplit(url)
        asked = f"{method} {parts.path}"
        if not self.asked or self.asked[-1] != asked:
            self.asked.append(asked)
        self.queries.setdefault(asked, []).append(parse_qs(parts.query))
        if method == "POST":
            self.query |= parse_qs(parts.query)
            self.bodies.append(body)
        found = self.answers.get(asked)
        if found:
            return found.pop(0) if len(found) > 1 else found[0]
        if parts.path.startswith("/predictions"):
            return 200, {"version": "2.0", "actions": ACTIONS}
        return 200, [described(parts.path)]


def described(path: str, *statuses: str, pending: int = 0) -> dict[str, Any]:
    return {
        "modelVersion": "1.0",
        "minWorkers": 2,
        "batchSize": 1,
        "maxBatchDelay": 100,
        "workers": [
            {"id": str(index), "pid": 7, "status": status}
            for index, status in enumerate(statuses or ("READY", "READY"))
        ],
        "jobQueueStatus": {"pendingRequests": pending},
        "path": path,
    }


def answering(small: Small) -> type[BaseHTTPRequestHandler]:
    """Return what handles its requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = small.answer(self.command, self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            self.do_GET()

        def do_DELETE(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            del format, args

    return Handler


@pytest.fixture
def torchserve() -> Iterator[tuple[Small, str]]:
    small = Small()
    with ThreadingHTTPServer(("127.0.0.1", 0), answering(small)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield small, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def swap_on(url: str, new: Archive = NEW, timeout_s: float = 5.0) -> Swap:
    return Swap(new, url, url, "vla", timeout_s=timeout_s, settle_s=0.15)


STEPS = [
    "GET /models/vla",
    "POST /models",
    "GET /models/vla/2.0",
    "POST /predictions/vla/2.0",
    "PUT /models/vla/2.0/set-default",
    "POST /predictions/vla",
]
BACK = ["PUT /models/vla/1.0/set-default", "GET /models/vla/2.0", "DELETE /models/vla/2.0"]


def test_a_swap_takes_its_steps_in_order(torchserve: tuple[Small, str]) -> None:
    small, url = torchserve

    assert swap_on(url).run() == "1.0"

    assert small.asked == [*STEPS, "GET /models/vla/1.0", "DELETE /models/vla/1.0"]
    assert small.query == {
        "url": ["new.mar"],
        "model_name": ["vla"],
        "initial_workers": ["2"],
        "batch_size": ["1"],
        "max_batch_delay": ["100"],
        "synchronous": ["false"],
    }
    assert len(small.bodies) == 1 + 2 * WARM_UP_REQUESTS
    assert all(b'name="command"\r\n\r\ngo\r\n' in body for body in small.bodies[1:])
    assert all(b'filename="x.png"' in body for body in small.bodies[1:])


def on_a_gpu(*statuses: str, workers: int = 2) -> dict[str, Any]:
    found = described("", *statuses)
    return found | {"minWorkers": workers, "workers": [each | {"gpu": True} for each in found["workers"]]}


def test_on_a_gpu_the_new_version_has_one_worker_until_the_old_one_is_gone(
    torchserve: tuple[Small, str],
) -> None:
    small, url = torchserve
    small.answers["GET /models/vla"] = [(200, [on_a_gpu()])]
    one = on_a_gpu("READY", workers=1)
    small.answers["GET /models/vla/2.0"] = [
        (200, [each]) for each in (one, one, on_a_gpu("READY", "UNLOADED"), on_a_gpu())
    ]

    assert swap_on(url).run() == "1.0"

    assert small.query["initial_workers"] == ["1"]
    removed = [*STEPS, "GET /models/vla/1.0", "DELETE /models/vla/1.0"]
    assert small.asked == [*removed, "GET /models/vla/2.0", "PUT /models/vla/2.0", "GET /models/vla/2.0"]
    assert small.queries["PUT /models/vla/2.0"] == [
        {"min_worker": ["2"], "max_worker": ["2"], "synchronous": ["false"]}
    ]


def test_a_new_version_without_room_for_all_workers_serves_with_one(
    torchserve: tuple[Small, str], capsys: pytest.CaptureFixture[str]
) -> None:
    small, url = torchserve
    small.answers["GET /models/vla"] = [(200, [on_a_gpu()])]
    small.answers["GET /models/vla/2.0"] = [(200, [on_a_gpu("READY", workers=1)])]

    assert swap_on(url, timeout_s=0.6).run() == "1.0"

    asked = [query["min_worker"] for query in small.queries["PUT /models/vla/2.0"]]
    assert asked == [["2"], ["1"]]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "vla 2.0 serves with fewer workers than the old one had: no worker of vla 2.0 was ready within 0.6 s"
    )


def refused(torchserve: tuple[Small, str], **changed: Any) -> str:
    _, url = torchserve
    with pytest.raises(SwapError) as caught:
        swap_on(url, dataclasses.replace(NEW, **changed)).run()
    return str(caught.value)


def test_the_version_that_is_served_is_not_swapped_in(torchserve: tuple[Small, str]) -> None:
    message = refused(torchserve, version="1.0")

    assert message == "vla 1.0 is what is served; export with another --version"
    assert torchserve[0].asked == ["GET /models/vla"]


def test_an_archive_that_takes_no_batch_is_not_swapped_in_where_the_gate_makes_them(
    torchserve: tuple[Small, str],
) -> None:
    assert refused(torchserve, largest_batch=0) == "new.mar takes no batch of the gate's; export it again"
    assert torchserve[0].asked == ["GET /models/vla"]

    small, url = torchserve
    small.answers["GET /models/vla"] = [(200, [described("/models/vla") | {"batchSize": 4}])]
    assert swap_on(url, dataclasses.replace(NEW, largest_batch=0)).run() == "1.0"
    assert small.query["batch_size"] == ["4"]


@pytest.mark.parametrize(
    ("path", "answer", "message", "steps"),
    [
        ("POST /models", (409, "no"), 'registering new.mar got 409: "no"', 2),
        (
            "GET /models/vla/2.0",
            (500, "no"),
            'GET {url}/models/vla/2.0 got 500: "no"',
            3,
        ),
        (
            "POST /predictions/vla/2.0",
            (503, "no"),
            'the archived example, posted to {url}/predictions/vla/2.0, got 503: "no"',
            4,
        ),
        (
            "POST /predictions/vla",
            (200, {"version": "1.0", "actions": ACTIONS}),
            "{url}/predictions/vla is answered by 1.0, expected 2.0",
            6,
        ),
        (
            "POST /predictions/vla/2.0",
            (200, {"version": "2.0", "actions": [[0.5, 0.25]]}),
            "{url}/predictions/vla/2.0: 5e+02 times what rounding explains, it differs from the archived "
            "answer by 0.5",
            4,
        ),
    ],
)
def test_whatever_fails_is_rolled_back(
    torchserve: tuple[Small, str], path: str, answer: tuple[int, Any], message: str, steps: int
) -> None:
    small, url = torchserve
    small.answers[path] = [answer]

    assert refused(torchserve) == message.replace("{url}", url)

    back = BACK if path != "GET /models/vla/2.0" else BACK[:2]
    assert small.asked == [*STEPS[:steps], *back]


def test_an_archive_without_an_example_is_rolled_back(torchserve: tuple[Small, str]) -> None:
    for changed in ({"example": None}, {"policy": None}):
        assert refused(torchserve, **changed) == "new.mar has no example request to check it with"
        assert torchserve[0].asked[-3:] == BACK


def test_a_worker_that_dies_while_it_loads_ends_the_swap(torchserve: tuple[Small, str]) -> None:
    small, _ = torchserve
    first = described("", "UNLOADED", "READY")
    gone, second = described("", "UNLOADED", "READY"), described("", "UNLOADED", "READY")
    gone["workers"][0]["pid"], second["workers"][0]["pid"] = -1, 8
    small.answers["GET /models/vla/2.0"] = [(200, [each]) for each in (first, gone, second, described(""))]

    assert refused(torchserve) == "a worker of vla 2.0 failed to load; see the log"
    assert small.asked[-3:] == BACK


def test_workers_that_load_are_waited_for(torchserve: tuple[Small, str]) -> None:
    small, url = torchserve
    loading = [described("", "READY"), described("", "READY", "UNLOADED"), described("")]
    small.answers["GET /models/vla/2.0"] = [(200, [each]) for each in loading]

    assert swap_on(url).run() == "1.0"
    assert len(small.answers["GET /models/vla/2.0"]) == 1


def test_workers_that_never_load_are_given_up(torchserve: tuple[Small, str]) -> None:
    small, url = torchserve
    small.answers["GET /models/vla/2.0"] = [(200, [described("", "READY")])]

    with pytest.raises(SwapError, match=r"^no worker of vla 2\.0 was ready within 0\.4 s$"):
        swap_on(url, timeout_s=0.4).run()


def test_the_old_version_is_removed_when_it_is_idle(torchserve: tuple[Small, str]) -> None:
    small, url = torchserve
    busy = [(200, [described("", pending=1)])]
    small.answers["GET /models/vla/1.0"] = [*busy * 3, (200, [described("")])]
    swap_on(url).run()
    assert len(small.answers["GET /models/vla/1.0"]) == 1

    small.asked.clear()
    small.answers["GET /models/vla/1.0"] = busy
    with pytest.raises(SwapError, match=r"^1\.0 still has requests after 0\.3 s; remove it by hand$"):
        swap_on(url, timeout_s=0.3).run()
    assert "DELETE /models/vla/1.0" not in small.asked


def test_a_server_that_is_gone_is_named() -> None:
    with pytest.raises(SwapError, match=r"^GET http://127\.0\.0\.1:1/models/vla failed: "):
        swap_on("http://127.0.0.1:1").run()
