"""Real replicas (TorchServe behind its gate) and the real proxy, started as their images start them."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from server.ports import free_port

ROOT = Path(__file__).parents[2]
STARTUP_TIMEOUT_S = 180.0

# Answers like a policy; fields of a request make it slow, refuse, kill its worker, or note what it computed.
HANDLER = """
import json, os, time

def handle(data, ctx):
    out = []
    for index, row in enumerate(data or []):
        time.sleep(float(row.get("sleep", b"0")))
        if "note" in row:
            open(row["note"].decode(), "a").write(row.get("mark", b".").decode())
        if "die_once" in row and not os.path.exists(row["die_once"].decode()):
            open(row["die_once"].decode(), "w").close()
            os._exit(1)
        headers = {name.lower(): value for name, value in ctx.get_all_request_header(index).items()}
        body = {"actions": ACTIONS, "version": VERSION, "seen": headers, "action_names": ["x", "y"],
                "control_hz": 10.0, "safety": {"status": "ok"}, "policy": "echo",
                "request_id": headers.get("x-request-id")}
        if "unsafe" in row:
            ctx.set_response_status(503, "", index)
            body = {"error": {"code": "unsafe_action", "field": None, "message": "outside"}}
        ctx.set_response_content_type(index, "application/json")
        out.append(json.dumps(body).encode())
    return out or None
"""
CONFIG = (
    "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\nmaxBatchDelay: 1\njobQueueSize: 16\nresponseTimeout: 30\n"
)
ACTIONS = [[0.5, -0.25]]


def write_version(folder: Path, version: str, actions: list[list[float]] = ACTIONS, load: str = "") -> Path:
    """Write an archive and its digest; it answers with `actions`, and runs `load` when it is loaded."""
    manifest = {
        "runtime": "python",
        "archiverVersion": "0.12.0",
        "model": {"modelName": "vla", "modelVersion": version, "handler": "h.py", "configFile": "c.yaml"},
    }
    example = {"images": {"front": "x.png"}, "command": "x", "seed": 0, "state": [], "actions": ACTIONS}
    path = folder / f"vla-{version}.mar"
    with zipfile.ZipFile(path, "w") as mar:
        mar.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        mar.writestr("h.py", f"{load}\nACTIONS = {actions}\nVERSION = {version!r}\n{HANDLER}")
        mar.writestr("c.yaml", CONFIG)
        mar.writestr("x.png", b"picture")
        mar.writestr("policy.json", json.dumps({"example": example}))
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    path.with_name(path.name + ".sha256").write_text(digest.stdout)
    return path


@dataclass(frozen=True)
class Running:
    """A started program, where it listens, and what it said so far."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    # TorchServe's inference port, of a replica.
    torchserve_port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def predictions_url(self) -> str:
        return f"{self.url}/predictions/vla"

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.terminate()
        return self.process.wait(60)


StartReplica = Callable[[Path], Running]
StartProxy = Callable[..., Running]


@contextmanager
def started(
    arguments: list[object], port: int, log: Path, ready_port: int, **options: object
) -> Iterator[Running]:
    """Run a program from when it is ready to the end; `options` is added to its environment."""
    torchserve_port = int(str(options.pop("torchserve_port", 0)))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **{name: str(value) for name, value in options.items()}},
        )
    running = Running(process, port, log, torchserve_port)
    try:
        wait_for(running, ready_port)
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(running: Running, ready_port: int) -> None:
    deadline = time.monotonic() + STARTUP_TIMEOUT_S
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            if requests.get(f"http://127.0.0.1:{ready_port}/health/ready", timeout=2).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    pytest.fail(f"not ready, status {running.process.poll()}:\n{running.log.read_text()[-3000:]}")


@contextmanager
def replica(archive: Path | Sequence[Path], folder: Path, *arguments: object) -> Iterator[Running]:
    """Run one replica as its image does, of one archive or several."""
    first = free_port()
    command = [sys.executable, "-m", "server.container", "--warm-up-requests", 5]
    for path in [archive] if isinstance(archive, Path) else archive:
        command += ["--archive", path]
    command += ["--torchserve-port", first, "--port", first + 5, "--metrics-port", first + 6, *arguments]
    log = folder / f"replica-{first}.log"
    with started(command, first + 5, log, first + 5, torchserve_port=first) as running:
        yield running


@contextmanager
def proxy(folder: Path, *replicas: int, **settings: object) -> Iterator[Running]:
    """Run the proxy as its image does, in front of the replicas at these ports."""
    port = free_port()
    defaults: dict[str, object] = {
        "REPLICAS": " ".join(f"127.0.0.1:{replica}" for replica in replicas),
        "PORT": port,
        "HEALTH_PORT": port + 1,
        "FOLDER": folder / f"proxy-{port}",
        "TLS_FOLDER": folder / "tls",
        "AUTH": "none",
        "RATE": "100000r/s",
    }
    log = folder / f"proxy-{port}.log"
    with started([ROOT / "docker/proxy/start"], port, log, port + 1, **(defaults | settings)) as running:
        yield running
