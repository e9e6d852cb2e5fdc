"""TorchServe on the device: right answers, speed over HTTP, and another version swapped in under load."""

import importlib.util
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import requests
import torch

from archive.digest import digest
from archive.read import Archive, unpack
from bench import bodies
from bench.generator import Plan
from bench.gpu.measure import answers, rows
from bench.load import Answers, drive
from export.export import Options, export
from server.java import JavaNotFound, find_java
from server.ports import free_port
from server.process import TorchServe
from vla_runtime.observation import Row
from vla_runtime.policy import Policy

CLIENTS = (1, 8, 32, 64)
# Of the tabletop's hand: x, y, z [m], opening.
STATE = (0.0, 0.1, 0.1, 0.04)
# Largest difference of an answer from the same archive in this process, in normalised units.
ALLOWED = 1e-3


def missing() -> str | None:
    """Return what this host lacks to run TorchServe, None where it has all."""
    if importlib.util.find_spec("ts") is None:
        return "TorchServe is not installed here"
    try:
        find_java()
    except JavaNotFound as error:
        return str(error).splitlines()[0]
    return None


def check(checkpoint: Path, device: str, seconds: float) -> dict[str, Any]:
    """Serve a checkpoint by TorchServe on a device and load it.

    Args:
        checkpoint: folder of the policy
        device: `cpu`, or the GPU whose worker TorchServe starts
        seconds: time of each phase of load [s]
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, second = (_exported(checkpoint, folder, version) for version in ("1.0", "2.0"))
        log: list[str] = []
        gpus = int(device != "cpu")
        with TorchServe(first, port=free_port(), gpus=gpus, model_api=True, on_log=log.append) as server:
            said = (line.partition("MODEL_LOG - ")[2] for line in log if "ready after" in line)
            found: dict[str, Any] = {"worker": next(said, "")}
            found["largest_difference"] = _difference(server, first, device)
            target = bodies.Target("127.0.0.1", server.port, "/predictions/vla", STATE)
            pictures = [bytes(row["image"]) for row in rows(64)]  # pyright: ignore[reportArgumentType]
            made = bodies.requests(target, pictures, bodies.repeated(256), "msgpack")
            load = _Load(server.port, bodies.write(made, folder / "pool"))
            load.phase(seconds, clients=8)  # the front end is slow in its first hundreds of requests
            found["load"] = [_figures(clients, load.phase(seconds, clients=clients)) for clients in CLIENTS]
            found["swap"] = _swapped(server, second, load)
            found["gpu_memory_mib"] = _memory_mib() if gpus else None
    kept = found["largest_difference"] <= ALLOWED and found["swap"]["status"] == 0
    failed = sum(phase["failed"] for phase in found["load"]) + found["swap"]["failed"]
    return found | {"ok": kept and failed == 0}


@dataclass(frozen=True)
class _Load:
    port: int
    pool: Path

    def phase(self, seconds: float, *, clients: int) -> Answers:
        return drive(Plan("127.0.0.1", self.port, str(self.pool), seconds, clients))


def _exported(checkpoint: Path, folder: Path, version: str) -> Path:
    archive = folder / "store" / f"{'vla' if version == '1.0' else 'next'}.mar"
    export(Options(str(checkpoint), archive, version=version))
    return archive


def _difference(server: TorchServe, archive: Path, device: str) -> float:
    """Compare single requests with the same archive in this process, one batch; in normalised units."""
    asked = [{**row, "state": STATE} for row in rows(16, seed=3)]
    with tempfile.TemporaryDirectory() as folder:
        policy = Policy.load(unpack(archive, Path(folder)), device)
        scale: Any = policy.spec.action
        right = answers(policy, asked)
    got = np.asarray([_asked(server, row) for row in asked]) / scale.scale
    return float(np.abs(got - right).max())


def _asked(server: TorchServe, row: Row) -> list[list[float]]:
    kind = "application/msgpack"
    body = msgspec.msgpack.encode(row)
    answer = requests.post(
        server.predictions_url, data=body, headers={"Content-Type": kind, "Accept": kind}, timeout=30
    )
    answer.raise_for_status()
    return msgspec.msgpack.decode(answer.content)["actions"]


def _figures(clients: int, answered: Answers) -> dict[str, Any]:
    return {
        "clients": clients,
        "rate_hz": round(answered.rate_hz, 1),
        "p50_ms": round(answered.latency.p50_ms, 2),
        "p95_ms": round(answered.latency.p95_ms, 2),
        "failed": answered.failed,
        "stages_ms": {name: round(value, 2) for name, value in answered.stages_ms.items()},
    }


def _swapped(server: TorchServe, new: Path, load: _Load) -> dict[str, Any]:
    """Swap in another version while 8 clients ask: none may lose a request."""
    phases: list[Answers] = []
    thread = threading.Thread(target=lambda: phases.append(load.phase(20.0, clients=8)))
    thread.start()
    command = [sys.executable, "-m", "server.swap", str(new), "--port", str(server.port)]
    command += ["--sha256", digest(new)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    thread.join()
    said = (done.stderr or done.stdout).strip().splitlines()
    return {
        "status": done.returncode,
        "says": said[-1] if said else "",
        "requests": phases[0].requests,
        "failed": phases[0].failed,
        "p95_ms": round(phases[0].latency.p95_ms, 2),
        "version": Archive.open(new).version,
    }


def _memory_mib() -> float:
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20
