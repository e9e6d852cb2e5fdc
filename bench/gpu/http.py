"""TorchServe on the device: right answers, speed over HTTP, and another version swapped in under load."""

import importlib.util
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import requests

from archive.digest import digest
from archive.read import unpack
from bench import bodies
from bench.answers import actions, normalised
from bench.gpu.part import Findings, Run, Skipped
from bench.gpu.parts import DEFAULT
from bench.load import Answers
from bench.policies import STATE, robot_requests
from bench.served import Server, served
from export.export import Options, export
from loadtest.body import MSGPACK
from loadtest.document import Table
from loadtest.watch import accelerator_bytes
from server.java import JavaNotFound, find_java
from vla_runtime.policy import Policy

CLIENTS = (1, 8, 32, 64)
# Time of each phase of load, and of that in which another version is swapped in [s].
PHASE_S, SWAP_S = 4.0, 20.0
# Largest difference of an answer from the same archive in this process, in normalised units.
ALLOWED = 1e-3


class Swap(NamedTuple):
    """Another version, swapped in while 8 clients asked."""

    status: int
    says: str
    load: Answers


def http(run: Run) -> Findings:
    """Serve the default checkpoint by TorchServe, where it and Java are at hand, and load it."""
    if importlib.util.find_spec("ts") is None:
        raise Skipped("TorchServe is not installed here")
    try:
        find_java()
    except JavaNotFound as error:
        raise Skipped(str(error).splitlines()[0]) from error
    log: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, second = (_exported(folder, *named) for named in (("vla", "1.0"), ("next", "2.0")))
        with served(first, STATE, gpus=int(run.on_gpu), model_api=True, on_log=log.append) as server:
            made = bodies.requests(server.target, bodies.pictures(64), bodies.repeated(256), "msgpack")
            pool = bodies.write(made, folder / "pool")
            server.load(pool, PHASE_S, clients=8)  # the front end is slow in its first hundreds of requests
            difference = _difference(server, first, run.device)
            loads = {clients: server.load(pool, PHASE_S, clients=clients).answers for clients in CLIENTS}
            swap = _swapped(server, second, pool)
            used_mib = (accelerator_bytes() or 0.0) / 2**20
    worker = next((line.partition("MODEL_LOG - ")[2] for line in log if "ready after" in line), "")
    about = (
        f"TorchServe, one worker ({worker}), clients on the same host, 640 x 480 JPEG in msgpack; largest "
        f"difference from the same archive in process {difference:.1e}; GPU memory in use {used_mib:.0f} MiB."
    )
    swapped = (
        f"Another version swapped in under 8 clients: {swap.says}; {swap.load.requests} requests, "
        f"{swap.load.failed} failed, p95 {swap.load.latency.p95_ms:.2f} ms."
    )
    figures = {"largest_difference": difference, "gpu_memory_mib": used_mib, "load": loads, "swap": swap}
    failed = sum(load.failed for load in (*loads.values(), swap.load))
    kept = difference <= ALLOWED and swap.status == 0 and failed == 0
    return Findings.of([about, _table(loads), swapped], figures, ok=kept)


def _table(loads: dict[int, Answers]) -> Table:
    rows = [
        (str(clients), load.rate_hz, load.latency.p50_ms, load.latency.p95_ms, str(load.failed))
        for clients, load in loads.items()
    ]
    return Table(("clients", "requests/s", "p50 [ms]", "p95 [ms]", "failed"), rows)


def _exported(folder: Path, name: str, version: str) -> Path:
    archive = folder / "store" / f"{name}.mar"
    export(Options(str(DEFAULT), archive, version=version))
    return archive


def _difference(server: Server, archive: Path, device: str) -> float:
    """Compare single requests with the same archive in this process, one batch; in normalised units."""
    asked = robot_requests(16)
    with tempfile.TemporaryDirectory() as folder:
        policy = Policy.load(unpack(archive, Path(folder)), device)
        right = actions(policy, asked)
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK}
    got = []
    for row in asked:
        answer = requests.post(server.target.url, msgspec.msgpack.encode(row), headers=headers, timeout=30)
        answer.raise_for_status()
        got.append(msgspec.msgpack.decode(answer.content)["actions"])
    return float(np.abs(normalised(policy, got) - right).max())


def _swapped(server: Server, new: Path, pool: Path) -> Swap:
    """Swap in another version while 8 clients ask: none may lose a request."""
    loads: list[Answers] = []
    thread = threading.Thread(target=lambda: loads.append(server.load(pool, SWAP_S, clients=8).answers))
    thread.start()
    command = [sys.executable, "-m", "server.swap", str(new), "--port", str(server.target.port)]
    command += ["--sha256", digest(new)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    thread.join()
    says = (done.stderr or done.stdout).strip().splitlines()
    return Swap(done.returncode, says[-1] if says else "", loads[0])
