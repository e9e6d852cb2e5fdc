"""The TorchServe process, with a small program in place of Java: how it is started, watched, and stopped."""

import contextlib
import json
import os
import socket
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from making import write_archive

from archive.errors import ArchiveError
from archive.write import pack
from server import process as process_module
from server.archives import require_room
from server.errors import PortTaken, ServerError, StartFailed
from server.front_end import Memory
from server.ports import bind, free_port
from server.process import TorchServe
from server.workers import Workers

# Says which version it is; else answers on the management port, which it finds in config.properties as Java
# does, with what a test has written into a file.
JAVA = """#!{python} -IS
import sys, os, signal, http.server, json, time
if sys.argv[1:] == ["-version"]:
    sys.exit(print('openjdk version "17.0.1"', file=sys.stderr))
print("TEMP", os.environ["TEMP"], os.getcwd(), os.environ.get("OMP_WAIT_POLICY"), flush=True)
print("arguments", *sys.argv[1:], sep="|", flush=True)
said = json.load(open({said!r}))
print(*said["log"], sep="\\n", flush=True)
if "later" in said:
    time.sleep(0.2)
    print(said["later"], flush=True)
if "status" in said:
    sys.exit(said["status"])
if said.get("polite"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("asked to stop", flush=True)))
if said.get("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
config = open(sys.argv[sys.argv.index("-f") + 1]).read()
port = int(config.split("management_address=")[-1].split()[0].rpartition(":")[2])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        missing = 404, {{"code": 404, "type": "T", "message": "no"}}
        status, answer = json.load(open({said!r}))["models"].get(self.path, missing)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *a):
        pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def model(*statuses: str, workers: int = 1, **more: Any) -> tuple[int, list[dict[str, Any]]]:
    return 200, [{"workers": [{"status": status} for status in statuses], "minWorkers": workers, **more}]


Say = Callable[..., None]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Decide what the program in place of Java says."""
    said, java = tmp_path / "said.json", tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(JAVA.format(python=sys.executable, said=str(said)))
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    monkeypatch.setattr(process_module, "STOP_TIMEOUT_S", 0.3)

    def write(models: dict[str, Any] | None = None, log: list[str] | None = None, **more: Any) -> None:
        paths = {f"/models/{name}": answer for name, answer in (models or {"echo": model("READY")}).items()}
        said.write_text(json.dumps({"models": paths, "log": log or [], **more}))

    write()
    return write


@contextlib.contextmanager
def started(tmp_path: Path, **options: Any) -> Iterator[TorchServe]:
    options = {"archive": write_archive(tmp_path), "port": free_port(), "startup_timeout_s": 20.0} | options
    with TorchServe(**options) as server:
        yield server


def refused(tmp_path: Path, **options: Any) -> str:
    with pytest.raises(StartFailed) as caught, started(tmp_path, **options):
        pass
    return str(caught.value)


def test_it_is_started_in_a_folder_of_its_own_and_stopped(tmp_path: Path, say: Say) -> None:
    say(log=[f"line {index}" for index in range(600)])
    heard: list[str] = []
    with started(tmp_path, on_log=heard.append, memory=Memory(heap_mib=64, direct_mib=32)) as server:
        assert server.poll() is None
        process = psutil.Process(server.pid)
        place, command = heard[0].split(" "), heard[1].split("|")
        folder = Path(place[1])
        assert place == ["TEMP", str(folder), str(folder), "PASSIVE"]
        assert server.log_tail(2) == "line 598\nline 599"
        assert len(server.log_tail(1000).splitlines()) == 500
    assert not process.is_running()
    assert not folder.exists()
    assert heard[2:] == [f"line {index}" for index in range(600)]
    assert command[1:5] == [
        "-Xmx64m",
        "-XX:MaxDirectMemorySize=32m",
        "-XX:+UseParallelGC",
        "-XX:+ExitOnOutOfMemoryError",
    ]
    assert f"-Djava.io.tmpdir={folder}" in command
    assert command[-6:] == [
        "org.pytorch.serve.ModelServer",
        "--python",
        sys.executable,
        "-f",
        f"{folder}/config.properties",
        "-ncs",
    ]


def test_a_stubborn_one_is_killed_with_its_children(tmp_path: Path, say: Say) -> None:
    say(stubborn=True)
    begun = time.monotonic()
    with started(tmp_path) as server:
        process = psutil.Process(server.pid)

    assert not process.is_running()
    assert time.monotonic() - begun > 0.3


def test_it_is_asked_to_stop_before_it_is_killed(tmp_path: Path, say: Say) -> None:
    say(polite=True)
    heard: list[str] = []
    with started(tmp_path, on_log=heard.append):
        assert "asked to stop" not in heard
    assert heard[-1] == "asked to stop"


def test_the_last_words_of_a_worker_are_waited_for(tmp_path: Path, say: Say) -> None:
    say({"echo": model("UNLOADED")}, log=["Retry worker: 9000"], later="what was wrong")

    assert refused(tmp_path).endswith("\nRetry worker: 9000\nwhat was wrong")


@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)])
def test_torchserve_must_be_installed(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch, found: object
) -> None:
    del say
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: found)
    message = r"^TorchServe is not installed here: pip install 'vla-serve\[serve\]'$"
    with pytest.raises(ServerError, match=message), started(tmp_path):
        pass


def test_the_environment_decides_before_us(tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    del say
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with started(tmp_path) as server:
        assert server.log_tail().splitlines()[0].endswith(" ACTIVE")


def settings_of(server: TorchServe) -> dict[str, str]:
    config = Path(server.log_tail(500).split("-f|")[1].split("|")[0]).read_text()
    lines = config.partition("# Of this instance\n")[2].splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_its_settings_are_of_the_instance(tmp_path: Path, say: Say) -> None:
    del say
    with started(tmp_path) as server:
        port, settings = server.port, settings_of(server)
        assert (server.url, server.management_url) == (
            f"http://127.0.0.1:{port}",
            f"http://127.0.0.1:{port + 1}",
        )
        assert server.predictions_url == f"http://127.0.0.1:{port}/predictions/echo"
        assert server.metrics_url == f"http://127.0.0.1:{port + 2}/metrics"
    metrics = settings.pop("metrics_config")
    assert metrics == str(process_module.ROOT / "metrics.yaml")
    assert settings == {
        "inference_address": f"http://127.0.0.1:{port}",
        "management_address": f"http://127.0.0.1:{port + 1}",
        "metrics_address": f"http://127.0.0.1:{port + 2}",
        "grpc_inference_port": str(port + 3),
        "grpc_management_port": str(port + 4),
        "initial_worker_port": str(port + 10),
        "model_store": str(tmp_path),
        "load_models": "echo=echo.mar",
        "enable_model_api": "false",
        "number_of_gpu": "1",
    }


def test_several_archives_that_lie_apart_are_linked(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    say({"echo": model("READY"), "other": model("READY", "READY", workers=2)})
    (tmp_path / "apart").mkdir()
    both = [write_archive(tmp_path), write_archive(tmp_path / "apart", name="other")]
    port = free_port()
    more = {
        "inference_port": port + 5,
        "metrics_port": port + 6,
        "host": "0.0.0.0",
        "model_api": True,
        "gpus": 2,
    }
    with started(tmp_path, archive=both, port=port, **more) as server:
        settings = settings_of(server)
        store = Path(settings["model_store"])
        assert {link.name: link.resolve() for link in store.iterdir()} == {
            path.name: path.resolve() for path in both
        }
        assert settings["load_models"] == "echo=echo.mar,other=other.mar"
        assert settings["inference_address"] == f"http://0.0.0.0:{port + 5}"
        assert settings["metrics_address"] == f"http://127.0.0.1:{port + 6}"
        assert (settings["enable_model_api"], settings["number_of_gpu"]) == ("true", "0")
        assert server.url == f"http://127.0.0.1:{port + 5}"
        assert server.archive.name == "echo"
        say({"echo": model("READY"), "other": model("READY", "UNLOADED", workers=2)})
        assert server.ready()  # the other worker serves on
        assert server.workers() == {"echo": Workers(1, 1), "other": Workers(1, 2)}
        say({"echo": model("READY"), "other": model("UNLOADED", "UNLOADED", workers=2)})
        assert not server.ready()
        say({"echo": model(workers=0), "other": model("READY", "READY", workers=2)})
        assert not server.ready()
        say({"echo": (500, None), "other": model("READY", "READY", workers=2)})
        assert not server.ready()
        assert server.workers() == {"echo": Workers(0, 1), "other": Workers(2, 2)}


def test_archives_of_one_name_are_refused(tmp_path: Path, say: Say) -> None:
    del say
    (tmp_path / "apart").mkdir()
    first, second = write_archive(tmp_path), write_archive(tmp_path / "apart")
    for other in (first, second):
        message = rf"^{other} and {first} are both called 'echo': export one under "
        with pytest.raises(ArchiveError, match=message):
            TorchServe([first, other])


def test_archives_say_how_long_their_start_may_take(tmp_path: Path, say: Say) -> None:
    del say
    usual, slow = write_archive(tmp_path), write_archive(tmp_path, name="slow")
    with zipfile.ZipFile(slow) as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    manifest = json.loads(members["MAR-INF/MANIFEST.json"])
    manifest["model"]["startupTimeout"] = 700
    members["MAR-INF/MANIFEST.json"] = json.dumps(manifest).encode()
    pack(members, slow)

    assert TorchServe(usual).startup_timeout_s == 300
    assert TorchServe([usual, slow]).startup_timeout_s == 700
    assert TorchServe([usual, slow], startup_timeout_s=9.0).startup_timeout_s == 9


def test_what_stops_it_from_starting(tmp_path: Path, say: Say) -> None:
    say(status=3, log=["x MODEL_LOG - the reason", "something else"])
    assert refused(tmp_path) == (
        "TorchServe ended with status 3 before it was ready. Its last log lines:\nthe reason"
    )
    say({"echo": model("UNLOADED")}, log=["Retry worker: 9000", "last words"])
    said = refused(tmp_path)
    assert said.startswith("a worker of echo.mar ended while it loaded. Its last log lines:\nTEMP ")
    assert said.endswith("\nRetry worker: 9000\nlast words")
    say({"other": model("READY")}, log=[f"line {index}" for index in range(50)])
    said = refused(tmp_path)
    assert said.startswith("TorchServe did not load echo.mar. Its last log lines:\nline 10\n")
    say({"echo": model("READY", "UNLOADED", workers=2)})
    assert refused(tmp_path, startup_timeout_s=0.5).startswith(
        "no worker was ready within 0.5 s (--startup-timeout-s). Its last log lines:\n"
    )


@pytest.mark.parametrize(
    ("queue", "capacity"),
    [
        (
            {
                "batchSize": 8,
                "maxWorkers": 2,
                "jobQueueStatus": {"remainingCapacity": 14, "pendingRequests": 2},
            },
            (8, 2, 16),
        ),
        (
            {
                "batchSize": 0,
                "maxWorkers": 0,
                "jobQueueStatus": {"remainingCapacity": 1, "pendingRequests": 0},
            },
            (1, 1, 1),
        ),
    ],
)
def test_a_models_capacity(
    tmp_path: Path, say: Say, queue: dict[str, Any], capacity: tuple[int, int, int]
) -> None:
    say({"echo": model("READY", **queue)})
    with started(tmp_path) as server:
        assert server.capacity("echo") == capacity
        with pytest.raises(StartFailed, match=r"^TorchServe does not say how many requests none takes: "):
            server.capacity("none")


def test_one_that_is_not_started_says_so(tmp_path: Path, say: Say) -> None:
    del say
    server = TorchServe(write_archive(tmp_path))
    for ask in (server.poll, server.wait, lambda: server.pid):
        with pytest.raises(ServerError, match=r"^TorchServe is not started: use it as a context manager$"):
            ask()
    assert (server.port, server.inference_port, server.metrics_port) == (8080, 8080, 8082)
    server.stop()
    assert not TorchServe(server.archive.path, port=free_port()).ready()


def test_one_that_ends_by_itself_leaves_its_status(tmp_path: Path, say: Say) -> None:
    del say
    with started(tmp_path) as server:
        os.kill(server.pid, 9)
        assert server.wait() == -9
        assert server.poll() == -9


def test_archives_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = TorchServe(write_archive(tmp_path))
    need = server.archive.unpacked_bytes
    free = need
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    require_room([server.archive])
    free = need - 1
    with pytest.raises(
        ArchiveError, match=r"^echo\.mar need 0 MB unpacked, and /.* has 0 MB free: mount a larger "
    ):
        require_room([server.archive])


@pytest.mark.parametrize(
    ("offset", "use"),
    [
        (0, "inference, --port"),
        (1, r"management, --port \+ 1"),
        (2, r"metrics, --port \+ 2"),
        (3, r"gRPC inference, --port \+ 3"),
        (4, r"gRPC management, --port \+ 4"),
    ],
)
def test_a_taken_port_is_named(tmp_path: Path, say: Say, offset: int, use: str) -> None:
    del say
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port + offset)),
        pytest.raises(
            PortTaken, match=rf"^port {port + offset} \({use}\) can't be used: Address already in use; "
        ),
        started(tmp_path, port=port),
    ):
        pass


@pytest.mark.parametrize(("port", "offset"), [(0, 0), (65_530, 0), (65_534, 4), (65_536, 6)])
def test_ports_are_named_by_their_first(port: int, offset: int) -> None:
    with pytest.raises(PortTaken, match=rf"^port must be from 1 to 65529, got {port - offset} \(--port\)$"):
        bind("127.0.0.1", port, "any", offset)


@pytest.mark.parametrize(("port", "offset"), [(65_529, 0), (65_535, 6)])
def test_the_last_ports_can_be_had(port: int, offset: int) -> None:
    with contextlib.closing(bind("127.0.0.1", port, "any", offset)) as bound:
        assert bound.getsockname() == ("127.0.0.1", port)


def test_free_ports_are_apart_from_those_of_outgoing_connections() -> None:
    assert 20_000 <= free_port() < 32_000
    assert free_port() % 20 == 0


def test_a_port_whose_connections_still_linger_can_be_had_again() -> None:
    """A server that was stopped is started again at once."""
    port = free_port()
    with contextlib.closing(bind("127.0.0.1", port, "any", 0)) as listening:
        listening.listen()
        with socket.create_connection(("127.0.0.1", port)) as client:
            listening.accept()[0].close()  # the side that closes first lingers
            assert client.recv(1) == b""
    bind("127.0.0.1", port, "any", 0).close()


def test_the_first_port_of_all_is_a_port() -> None:
    """Whether or not it may be had: here somebody has it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # not allowed, or taken already
            stack.enter_context(socket.create_server(("127.0.0.1", 1)))
        with pytest.raises(PortTaken, match=r"^port 1 \(any, --port\) can't be used: "):
            bind("127.0.0.1", 1, "any", 0)


def test_a_free_port_has_all_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five of the instance, two behind its gate; a range with one taken is passed over."""
    first, second = 20_000, 20_020
    monkeypatch.setattr("random.sample", lambda *_, **__: [first, second])
    for taken in (first, first + 6):
        with socket.create_server(("127.0.0.1", taken)):
            assert free_port() == second
    with socket.create_server(("127.0.0.1", first + 7)):
        assert free_port() == first
    with (
        socket.create_server(("127.0.0.1", first)),
        socket.create_server(("127.0.0.1", second + 1)),
        pytest.raises(PortTaken, match=r"^no free range of ports between 20000 and 32000$"),
    ):
        free_port()


def test_what_is_promised_where_nothing_is_said(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    del say
    for devices, gpus in {"": 0, "-1": 0, "0": 1, "0,1": 1, None: 1}.items():
        if devices is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        assert TorchServe(write_archive(tmp_path)).gpus == gpus
    server = TorchServe(write_archive(tmp_path))
    assert (server.host, server.startup_timeout_s, server.model_api) == ("127.0.0.1", 300.0, False)
    assert server.memory == Memory(heap_mib=512, direct_mib=256)


def test_the_tail_of_a_log_has_50_lines(tmp_path: Path, say: Say) -> None:
    say(log=[f"line {index}" for index in range(60)])
    with started(tmp_path) as server:
        assert server.log_tail().splitlines() == [f"line {index}" for index in range(10, 60)]
        assert server.log_tail(1) == "line 59"
