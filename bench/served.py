"""The policy behind TorchServe: what its processes use, and load on it."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from archive.read import MANIFEST
from archive.write import pack
from bench.bodies import Target
from bench.generator import Plan
from bench.load import Answers, drive
from loadtest.host import peak_mib
from server.gate.gate import served as behind_gate
from server.process import WORKERS_PER_GPU

# Requests of a phase that warms the Java front end up: it is several times slower in its first hundreds.
WARM_UP_S = 6.0

EMPTY_HANDLER = """
ANSWER = b'{"actions": [' + b"0" * 380 + b"]}"

def handle(data, context):
    return [ANSWER] * len(data) if data else None
"""


@dataclass(frozen=True)
class Load:
    """A phase of load on a server."""

    answers: Answers
    # CPU time a request [ms] of the Java front end and this process, whose thread the gate is; and of the
    # workers.
    front_end_cpu_ms: float
    worker_cpu_ms: float


@dataclass(frozen=True)
class Server:
    """A running server."""

    target: Target
    # TorchServe's Java front end.
    pid: int

    def load(
        self, pool: Path, seconds: float, *, clients: int = 0, rate_hz: float = 0.0, seed: int = 0
    ) -> Load:
        """Put load on the server for `seconds`, and wait for what is in flight.

        Args:
            pool: file of ready-made requests
            seconds: how long requests are sent [s]
            clients: closed loop of so many clients
            rate_hz: or open-loop arrivals at this rate [1/s]
            seed: of the arrivals
        """
        plan = Plan(self.target.host, self.target.port, str(pool), seconds, clients, rate_hz, seed)
        before = self._cpu_s()
        answers = drive(plan)
        used = [after - start for after, start in zip(self._cpu_s(), before, strict=True)]
        front_end_ms, workers_ms = (seconds / max(1, answers.requests) * 1000 for seconds in used)
        return Load(answers, front_end_ms, workers_ms)

    def peak_mib(self) -> dict[str, float]:
        """Return the most memory resident so far [MiB]: Java, and all workers together.

        The gate is a thread of this process, and in neither.
        """
        workers = sum(peak_mib(worker.pid) for worker in self._workers())
        return {"Java": peak_mib(self.pid), "workers": workers}

    def _workers(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def _cpu_s(self) -> tuple[float, float]:
        """Return the CPU time used so far [s] by the front end and by the workers."""
        front_end = [psutil.Process(self.pid), psutil.Process()]
        front_s, worker_s = (
            sum(times.user + times.system for times in (process.cpu_times() for process in processes))
            for processes in (front_end, self._workers())
        )
        return front_s, worker_s


@contextmanager
def served(
    archive: Path,
    state: tuple[float, ...] = (),
    *,
    gpus: int = 1,
    workers_per_gpu: int = WORKERS_PER_GPU,
    model_api: bool = False,
    on_log: Callable[[str], None] | None = None,
) -> Iterator[Server]:
    """Serve an archive as `python -m server` does; see `server.process` for the options."""
    with behind_gate(
        archive, gpus=gpus, workers_per_gpu=workers_per_gpu, model_api=model_api, on_log=on_log
    ) as (server, port):
        yield Server(Target("127.0.0.1", port, f"/predictions/{server.archive.name}", state), server.pid)


def write_empty_archive(path: Path, batch: int) -> Path:
    """Write an archive whose handler answers at once: what the front end alone costs."""
    model = {
        "modelName": path.stem,
        "modelVersion": "1.0",
        "handler": "empty.py",
        "configFile": "config.yaml",
    }
    manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": model}
    config = f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {batch}\nmaxBatchDelay: 1\njobQueueSize: 128\n"
    contents = {MANIFEST: json.dumps(manifest), "empty.py": EMPTY_HANDLER, "config.yaml": config}
    pack({name: text.encode() for name, text in contents.items()}, path)
    return path


def settle() -> None:
    """Wait a moment, so that a phase does not begin in the last one's shadow."""
    time.sleep(0.3)
