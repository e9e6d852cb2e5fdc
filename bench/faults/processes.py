"""Real servers as they are deployed: a replica behind its gate, the proxy, or `python -m server` alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil
import requests

from server.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
STARTUP_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0


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
        """Where it is asked."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def predictions_url(self) -> str:
        """Where requests are posted."""
        return f"{self.url}/predictions/vla"

    @property
    def java(self) -> psutil.Process:
        """Its Java front end."""
        (java,) = [p for p in psutil.Process(self.process.pid).children() if p.name() == "java"]
        return java

    @property
    def worker(self) -> psutil.Process:
        """Its only worker."""
        (worker,) = self.java.children()
        return worker

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.terminate()
        return self.process.wait(60)


def start(
    arguments: Sequence[object],
    port: int,
    log: Path,
    torchserve_port: int = 0,
    environment: Mapping[str, object] = MappingProxyType({}),
) -> Running:
    """Start a program without waiting for it; `environment` is added to its own, and `log` begins anew."""
    log.write_bytes(b"")
    with log.open("ab") as output:  # nginx opens it once more, to append
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        )
    return Running(process, port, log, torchserve_port)


def wait_ready(running: Running, ready_port: int) -> None:
    """Return when `/health/ready` says so.

    Raises:
        RuntimeError: the program ended, or took too long; ends with what it said.
    """
    deadline = time.monotonic() + STARTUP_TIMEOUT_S
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            if requests.get(f"http://127.0.0.1:{ready_port}/health/ready", timeout=2).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    said = running.log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"not ready, status {running.process.poll()}:\n{said}")


def end(running: Running) -> None:
    """Stop a program, by force where it does not listen."""
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGTERM)
        try:
            running.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()


@contextmanager
def started(running: Running, ready_port: int) -> Iterator[Running]:
    """Have a started program from when it is ready to its end."""
    try:
        wait_ready(running, ready_port)
        yield running
    finally:
        end(running)


def replica_command(
    archives: Sequence[Path], first: int, *arguments: object, warm_up: int = 5
) -> list[object]:
    """Return how an image runs one replica, whose ports begin at `first`."""
    command: list[object] = [sys.executable, "-m", "server.container", "--warm-up-requests", warm_up]
    for path in archives:
        command += ["--archive", path]
    ports = ("--torchserve-port", first, "--port", first + 5, "--metrics-port", first + 6)
    return [*command, *ports, *arguments]


@contextmanager
def replica(archive: Path | Sequence[Path], folder: Path, *arguments: object) -> Iterator[Running]:
    """Run one replica as its image does, of one archive or several."""
    first, archives = free_port(), [archive] if isinstance(archive, Path) else archive
    command = replica_command(archives, first, *arguments)
    with started(start(command, first + 5, folder / f"replica-{first}.log", first), first + 5) as running:
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
        "BYTES_PER_S": 10**12,
    }
    program, log = ROOT / "docker/proxy/start", folder / f"proxy-{port}.log"
    with started(start([program], port, log, environment=defaults | settings), port + 1) as running:
        yield running
