"""TorchServe on the device: right answers, speed over HTTP, and another version swapped in under load."""

import importlib.util
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

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
from loadtest.document import Block, Table
from loadtest.search import once
from loadtest.watch import accelerator_bytes
from server.java import JavaNotFound, find_java
from server.process import WORKERS_PER_GPU
from vla_runtime.policy import Policy

CLIENTS = (1, 8, 32, 64)
# Robots that ask ten times a second: how many are tried, and the p95 that they may have [ms].
ROBOTS, ROBOTS_P95_MS = (16, 512), 50.0
# Time of each phase of load, and of that in which another version is swapped in [s].
PHASE_S, SWAP_S = 4.0, 20.0
# Largest difference of an answer from the same archive in this process, in normalised units.
ALLOWED = 1e-3


class Swap(msgspec.Struct, frozen=True):
    """Another version, swapped in while 8 clients asked."""

    status: int
    says: str
    load: Answers


class Served(msgspec.Struct, frozen=True):
    """What was found over HTTP."""

    # What a worker says of its device.
    worker: str
    # From the same archive in this process, in normalised units.
    largest_difference: float
    # Workers on the GPU -> clients -> what they measured.
    load: dict[str, dict[int, Answers]]
    robots: int
    swap: Swap
    gpu_memory_mib: float


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
        alone = _by_one_worker(first, folder, run)
        with served(first, STATE, gpus=int(run.on_gpu), model_api=True, on_log=log.append) as server:
            pool = _warmed(server, folder)
            found = Served(
                worker=next((line.partition("MODEL_LOG - ")[2] for line in log if "ready after" in line), ""),
                largest_difference=_difference(server, first, run.device),
                load={str(WORKERS_PER_GPU) if run.on_gpu else "": _loaded(server, pool, CLIENTS), **alone},
                robots=once(partial(_carries, server, pool), *ROBOTS),
                swap=_swapped(server, second, pool),
                gpu_memory_mib=(accelerator_bytes() or 0.0) / 2**20,
            )
    failed = sum(load.failed for loads in found.load.values() for load in loads.values())
    kept = found.largest_difference <= ALLOWED and found.swap.status == 0
    return Findings.of(_blocks(found), found, ok=kept and failed + found.swap.load.failed == 0)


def _blocks(found: Served) -> list[Block]:
    about = (
        f"TorchServe behind the gate ({found.worker}), clients on the same host, 640 x 480 JPEG in msgpack; "
        f"largest difference from the same archive in process {found.largest_difference:.1e}; GPU memory in "
        f"use {found.gpu_memory_mib:.0f} MiB. Of two workers on a GPU one prepares while the other computes."
    )
    carried = (
        f"Robots at 10 Hz, arriving at random (Poisson) for {PHASE_S:g} s, a p95 under {ROBOTS_P95_MS:g} ms "
        f"and no failure: {found.robots}."
    )
    load = found.swap.load
    swapped = (
        f"Another version swapped in under 8 clients: {found.swap.says}; {load.requests} requests, "
        f"{load.failed} failed, p95 {load.latency.p95_ms:.2f} ms."
    )
    return [about, _table(found.load), carried, swapped]


def _by_one_worker(archive: Path, folder: Path, run: Run) -> dict[str, dict[int, Answers]]:
    """Load a server that has one worker on the GPU; on a CPU the archive says how many there are."""
    if not run.on_gpu:
        return {}
    with served(archive, STATE, workers_per_gpu=1) as server:
        return {"1": _loaded(server, _warmed(server, folder), CLIENTS[1:])}


def _warmed(server: Server, folder: Path) -> Path:
    """Write requests to a file and send some: the front end is slow in its first hundreds."""
    made = bodies.requests(server.target, bodies.pictures(64), bodies.repeated(256), "msgpack")
    pool = bodies.write(made, folder / "pool")
    server.load(pool, PHASE_S, clients=8)
    return pool


def _loaded(server: Server, pool: Path, counts: Sequence[int]) -> dict[int, Answers]:
    return {clients: server.load(pool, PHASE_S, clients=clients).answers for clients in counts}


def _table(tables: dict[str, dict[int, Answers]]) -> Table:
    rows = [
        (workers, str(clients), load.rate_hz, load.latency.p50_ms, load.latency.p95_ms, str(load.failed))
        for workers, loads in tables.items()
        for clients, load in loads.items()
    ]
    return Table(("workers", "clients", "requests/s", "p50 [ms]", "p95 [ms]", "failed"), rows)


def _carries(server: Server, pool: Path, robots: int) -> bool:
    """Say whether the server keeps up with so many robots."""
    answers = server.load(pool, PHASE_S, rate_hz=10.0 * robots, seed=robots).answers
    return answers.failed == 0 and answers.latency.p95_ms < ROBOTS_P95_MS


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
