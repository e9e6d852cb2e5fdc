"""The server process: true readiness, refusals that name the cause, no orphans."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import psutil
import pytest
import requests

from archive.errors import ArchiveError
from server.errors import PortTaken, StartFailed
from server.ports import free_port
from server.process import TorchServe

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90.0

MakeArchive = Callable[..., Path]

FAILS_TO_LOAD = """
class Handler:
    def initialize(self, ctx):
        raise ValueError("the statistics are missing")

    def handle(self, data, ctx):
        return [b""] * len(data)
"""
DIES_WHILE_LOADING = """
import os

class Handler:
    def initialize(self, ctx):
        print("about to die", flush=True)
        os._exit(3)

    def handle(self, data, ctx):
        return [b""] * len(data)
"""
HANGS = """
import time

def handle(data, ctx):
    if data:
        time.sleep(600)
"""


@contextmanager
def command(archive: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m server`; kill what is left of it at the end."""
    arguments = [sys.executable, "-m", "server", "--archive", archive, "--port", str(port)]
    with subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("ready: "):
            return said
    pytest.fail(f"the server ended with {process.wait()}:\n{said}")


def test_serves_when_it_says_so(echo_server: TorchServe) -> None:
    answer = requests.post(
        echo_server.predictions_url, files={"image": b"123"}, data={"command": "x"}, timeout=10
    )

    assert (answer.status_code, answer.text) == (200, '["command", "image"]')


def test_readiness_waits_for_the_worker(make_archive: MakeArchive) -> None:
    slow = "import time\n\ntime.sleep(3)\n\ndef handle(data, ctx):\n    return [b'late'] * len(data or [])\n"
    started = time.monotonic()

    with TorchServe(make_archive(handler=slow), port=free_port(), startup_timeout_s=DEADLINE_S) as server:
        assert time.monotonic() - started > 3
        # A worker that was not ready would let this request wait for its load.
        assert requests.post(server.predictions_url, data=b"x", timeout=1).text == "late"


@pytest.mark.parametrize(
    ("handler", "reason"),
    [(FAILS_TO_LOAD, "ValueError: the statistics are missing"), (DIES_WHILE_LOADING, "about to die")],
)
def test_failed_load_ends_with_the_reason(make_archive: MakeArchive, handler: str, reason: str) -> None:
    with command(make_archive(handler=handler), free_port()) as process:
        said, _ = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 1
    error = said[said.index("\nerror: ") + 1 :]
    assert error.startswith("error: a worker of echo.mar ended while it loaded. Its last log lines:\n")
    assert reason in error


def test_model_that_never_loads_is_given_up(make_archive: MakeArchive) -> None:
    never = "import time\n\ntime.sleep(600)\n\ndef handle(data, ctx):\n    return data\n"
    server = TorchServe(make_archive(handler=never), port=free_port(), startup_timeout_s=5)

    with pytest.raises(StartFailed, match=r"^no worker was ready within 5 s \(--startup-timeout-s\)\."):
        server.__enter__()

    assert not [p for p in psutil.process_iter() if str(server.port) in " ".join(cmdline(p))]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize(
    ("offset", "named"),
    [(0, r"port {} \(inference, --port\)"), (1, r"port {} \(management, --port \+ 1\)")],
)
def test_taken_port_is_named(make_archive: MakeArchive, offset: int, named: str) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port + offset)):
        server = TorchServe(make_archive(), port=port)

        expected = (
            named.format(port + offset) + " can't be used: Address already in use; .* choose another --port$"
        )
        with pytest.raises(PortTaken, match="^" + expected):
            server.__enter__()


def test_two_side_by_side(echo_server: TorchServe, make_archive: MakeArchive) -> None:
    with TorchServe(make_archive(name="second"), port=free_port(), startup_timeout_s=DEADLINE_S) as second:
        for server in (echo_server, second):
            assert requests.post(server.predictions_url, data={"x": "1"}, timeout=10).text == '["x"]'
        assert requests.post(f"{second.url}/predictions/echo", data={"x": "1"}, timeout=10).status_code == 404


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_everything(make_archive: MakeArchive, number: signal.Signals) -> None:
    with command(make_archive(), free_port()) as process:
        said = read_until_ready(process)
        family = psutil.Process(process.pid).children(recursive=True)
        assert {p.name() for p in family} >= {"java"}
        assert len(family) == 2  # the front end and one worker
        folder = Path(family[0].cwd())
        process.send_signal(number)
        rest, _ = process.communicate(timeout=30)

    assert process.returncode == 0, said + rest
    assert f"{number.name}: stopping" in rest
    assert psutil.wait_procs(family, timeout=5)[1] == []
    assert not folder.exists()


def test_busy_worker_is_no_orphan(make_archive: MakeArchive) -> None:
    with TorchServe(make_archive(handler=HANGS), port=free_port(), startup_timeout_s=DEADLINE_S) as server:
        family = psutil.Process(server.pid).children(recursive=True)
        assert len(family) == 1
        client = Thread(target=post_and_lose, args=(server.predictions_url,))
        client.start()
        time.sleep(1)
    client.join(10)

    assert psutil.wait_procs(family, timeout=5)[1] == []


def post_and_lose(url: str) -> None:
    with pytest.raises(requests.ConnectionError):
        requests.post(url, data={"x": "1"}, timeout=60)


def test_front_end_that_dies_is_reported(make_archive: MakeArchive) -> None:
    with command(make_archive(), free_port()) as process:
        read_until_ready(process)
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(family[0].pid, signal.SIGKILL)
        said, _ = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "error: TorchServe ended by itself with status -9\n" in said
    assert psutil.wait_procs(family, timeout=5)[1] == []


def test_a_killed_server_leaves_nothing_behind(make_archive: MakeArchive) -> None:
    """Formerly Java and its workers lived on, and held the ports that the next start needs."""
    with command(make_archive(), free_port()) as process:
        read_until_ready(process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        left = psutil.wait_procs(family, timeout=10)[1]
        for one in left:
            one.kill()

    assert left == []


def test_missing_archive(tmp_path: Path) -> None:
    with command(tmp_path / "none.mar", free_port()) as process:
        said, _ = process.communicate(timeout=30)

    assert process.returncode == 1
    assert said.startswith(f"error: no archive at {tmp_path}/none.mar: make one with `make export`, or ")


def test_damaged_archives(make_archive: MakeArchive, tmp_path: Path) -> None:
    whole = make_archive().read_bytes()
    at = whole.index(b"sorted(row)")
    for content, reason in [
        (whole[: len(whole) // 2], r"bad\.mar is not a TorchServe archive \(File is not a zip file\)"),
        (whole[:at] + b"S" + whole[at + 1 :], r"bad\.mar is damaged: handler\.py has the wrong checksum"),
    ]:
        (tmp_path / "bad.mar").write_bytes(content)
        with pytest.raises(ArchiveError, match=reason):
            TorchServe(tmp_path / "bad.mar")


def test_an_impossible_port_is_named(make_archive: MakeArchive) -> None:
    with (
        pytest.raises(PortTaken, match=r"^port must be from 1 to 65529, got 99999 \(--port\)$"),
        TorchServe(make_archive(), port=99999),
    ):
        pass


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_an_archive_with_flipped_bytes_is_refused_in_a_line(
    tiny_archive: Path, tmp_path: Path, place: float
) -> None:
    data = bytearray(tiny_archive.read_bytes())
    begin = int(place * len(data))
    data[begin : begin + 64] = bytes(byte ^ 0xFF for byte in data[begin : begin + 64])
    damaged = tmp_path / "damaged.mar"
    damaged.write_bytes(data)

    with pytest.raises(
        ArchiveError, match=r"damaged\.mar is (damaged|not a TorchServe archive).*export it again"
    ):
        TorchServe(damaged, port=free_port())
