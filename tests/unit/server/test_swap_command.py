"""`python -m server.swap` as an operator runs it, and the example that warms a server up."""

import json
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from making import write_archive
from test_swap_steps import ACTIONS, STEPS, Small, answering, described

from archive.digest import digest
from server import swap
from server.errors import ServerError
from server.ports import free_port
from server.process import TorchServe
from server.swap import _parse
from server.warm_up import warm_up

# The example's picture is not read here.
FILES = {"example.png": b"picture"}


def write_new(folder: Path, name: str = "new", version: str = "2.0") -> Path:
    """Write an archive with an example, and its digest beside it."""
    path = write_archive(folder, name=name)
    policy = {
        "example": {
            "images": {"front": "example.png"},
            "seed": 0,
            "command": "go",
            "state": [],
            "actions": ACTIONS,
        }
    }
    with zipfile.ZipFile(path) as plain:
        members = {member: plain.read(member) for member in plain.namelist()}
    manifest = json.loads(members["MAR-INF/MANIFEST.json"])
    manifest["model"] |= {"modelVersion": version, "largestBatch": 8}
    members |= FILES
    members |= {
        "MAR-INF/MANIFEST.json": json.dumps(manifest).encode(),
        "policy.json": json.dumps(policy).encode(),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    path.with_name(f"{path.name}.sha256").write_text(f"{digest(path)}  {path.name}\n")
    return path


@pytest.fixture
def served() -> Iterator[tuple[Small, int]]:
    """A small TorchServe: inference at a port, management at the next."""
    small, port = Small(), free_port()
    small.answers["GET /models"] = [(200, {"models": [{"modelName": "vla"}]})]
    small.answers["POST /predictions/echo"] = [(200, {"version": "1.0", "actions": ACTIONS})]
    with ExitStack() as stack:
        for place in range(2):
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", port + place), answering(small)))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        yield small, port


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["swap", *map(str, arguments)])
    return swap.main()


def test_an_operator_swaps_the_policy(
    served: tuple[Small, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small, port = served
    new = write_new(tmp_path)

    assert run(monkeypatch, new, "--port", port, "--settle-s", 0.15) == 0

    assert small.asked == ["GET /models", *STEPS, "GET /models/vla/1.0", "DELETE /models/vla/1.0"]
    assert capsys.readouterr().out.splitlines() == [
        "registered vla 2.0; waiting for its workers",
        f"the archived example was answered as recorded by http://127.0.0.1:{port}/predictions/vla/2.0",
        "vla 2.0 is the default",
        f"the archived example was answered as recorded by http://127.0.0.1:{port}/predictions/vla",
        "vla 2.0 serves; 1.0 is removed",
    ]


def test_a_rollback_is_said_and_is_a_failure(
    served: tuple[Small, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small, port = served
    small.answers["POST /predictions/vla"] = [(503, "no")]

    assert run(monkeypatch, write_new(tmp_path), "--port", port, "--settle-s", 0.15) == 1

    said = capsys.readouterr()
    assert said.err == (
        f'error: the archived example, posted to http://127.0.0.1:{port}/predictions/vla, got 503: "no"\n'
    )
    assert said.out.splitlines()[-1] == "rolled back to vla 1.0"


@pytest.mark.parametrize(
    ("names", "arguments", "asked"),
    [
        (("arm",), (), "GET /models/arm"),
        (("arm", "new"), (), "GET /models/new"),
        (("arm", "leg"), ("--model", "leg"), "GET /models/leg"),
        (("arm", "new"), ("--model", "arm"), "GET /models/arm"),
    ],
)
def test_which_policy_is_replaced(  # noqa: PLR0917
    served: tuple[Small, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    arguments: tuple[str, ...],
    asked: str,
) -> None:
    small, port = served
    small.answers["GET /models"] = [(200, {"models": [{"modelName": name} for name in names]})]
    small.answers[asked] = [(404, "that is all")]

    assert run(monkeypatch, write_new(tmp_path), "--port", port, *arguments) == 1
    assert small.asked == ([asked] if arguments else ["GET /models", asked])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (200, {"models": [{"modelName": "a"}, {"modelName": "b"}]}),
            "which of a, b is to be replaced? Name it by --model",
        ),
        ((500, "no"), 'asking what is served got 500: "no"'),
    ],
)
def test_who_can_not_be_named_is_not_replaced(  # noqa: PLR0917
    served: tuple[Small, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: tuple[int, Any],
    message: str,
) -> None:
    small, port = served
    small.answers["GET /models"] = [answer]

    assert run(monkeypatch, write_new(tmp_path), "--port", port) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert small.asked == ["GET /models"]


def test_an_archive_is_checked_before_anything_is_asked(
    served: tuple[Small, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small, port = served
    new = write_new(tmp_path)

    assert run(monkeypatch, new, "--port", port, "--sha256", "0" * 64) == 1
    assert " expected 0000" in capsys.readouterr().err
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: SimpleNamespace(free=0))
    assert run(monkeypatch, new, "--port", port, "--sha256", digest(new)) == 1
    assert "new.mar need " in capsys.readouterr().err
    assert small.asked == []


def test_by_default_the_replica_of_an_image_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its front end listens at 8090 behind the gate."""
    monkeypatch.setattr(sys, "argv", ["swap", "new.mar"])

    options = vars(_parse())
    assert options == {
        "archive": Path("new.mar"),
        "sha256": None,
        "model": None,
        "port": 8090,
        "timeout_s": None,
        "settle_s": 2.0,
    }


def test_a_swap_waits_out_requests_that_come_in_between(served: tuple[Small, int], tmp_path: Path) -> None:
    """What is idle must stay so for the whole time."""
    small, port = served
    calm, busy = (200, [described("")]), (200, [described("", pending=1)])
    small.answers["GET /models/vla/1.0"] = [calm, calm, busy, calm]
    url, management = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
    new = swap.Archive.open(write_new(tmp_path))

    assert swap.Swap(new, url, management, "vla", timeout_s=5.0, settle_s=0.25).run() == "1.0"
    assert len(small.answers["GET /models/vla/1.0"]) == 1


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "jdk" / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 'openjdk version \"17.0.1\"' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))


def test_every_archives_example_warms_the_server_up(
    served: tuple[Small, int], tmp_path: Path, java: None
) -> None:
    del java
    small, port = served
    (tmp_path / "plain").mkdir()
    archives = [
        write_new(tmp_path, "one"),
        write_archive(tmp_path / "plain", name="cold"),
        write_new(tmp_path, "two"),
    ]
    server = TorchServe(archives, port=port)

    warm_up(server, 3)

    assert small.asked == ["POST /predictions/one", "POST /predictions/two"]
    assert len(small.bodies) == 6
    assert all(b'name="command"\r\n\r\ngo\r\n' in body for body in small.bodies)
    assert all(b'name="image"; filename="example.png"\r\n\r\npicture\r\n' in body for body in small.bodies)


def test_a_slow_policy_is_not_warmed_up_for_minutes(
    served: tuple[Small, int], tmp_path: Path, java: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    del java
    small, port = served
    monkeypatch.setattr("server.warm_up.LONGEST_S", 0.0)

    warm_up(TorchServe(write_new(tmp_path, "one"), port=port), 20)

    assert len(small.bodies) == 1


def test_a_server_that_refuses_its_example_is_not_warm(
    served: tuple[Small, int], tmp_path: Path, java: None
) -> None:
    del java
    small, port = served
    small.answers["POST /predictions/one"] = [(503, "no")]
    server = TorchServe(write_new(tmp_path, "one"), port=port)

    with pytest.raises(ServerError, match=r'^the archived example got 503: "no"\n'):
        warm_up(server, 3)
    assert len(small.bodies) == 1
