"""Ours and the peers, one worker each, alternating in one run."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import requests

from archive.read import unpack
from bench import bodies
from bench.bodies import Target
from bench.load import Answers
from bench.measure import Kind
from bench.peers import FOLDER
from bench.results import say
from bench.served import WARM_UP_S, Server, served
from loadtest.body import MSGPACK, packed
from loadtest.document import Block, Table
from server.ports import free_port
from server.process import WORKER_ENVIRONMENT
from vla_runtime.spec import PolicySpec

OURS = "TorchServe"
# Peer -> its options, the last of which its port follows.
PEERS = {"fastapi": (), "mosec": ("--address", "127.0.0.1", "--port")}
CLIENTS = (1, 8, 32, 64)
PICTURES = Kind("65KB", 640, 480, 65.0)
STARTUP_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Comparison:
    """What each server did in each turn."""

    policy: str
    # Server -> clients -> one phase of load a turn.
    phases: dict[str, dict[int, list[Answers]]]
    # Server -> memory of all its processes together, each at its peak [MiB].
    peak_mib: dict[str, float]


def compare(archive: Path, *, turns: int, seconds: float) -> Comparison:
    """Start ours and every peer, and load them in turn with the same requests."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = unpack(archive, Path(temporary, "unpacked"))
        spec = PolicySpec.load(folder)
        state = (0.0,) * spec.state_size
        pictures = PICTURES.pictures(256)
        running = {OURS: stack.enter_context(served(archive, state))}
        for name in PEERS:
            say(f"starting {name}")
            running[name] = stack.enter_context(_peer(name, folder, state, pictures[0]))
        pools = {
            name: bodies.write(
                bodies.requests(server.target, pictures, bodies.repeated(len(pictures)), "msgpack"),
                Path(temporary, name),
            )
            for name, server in running.items()
        }

        for name, server in running.items():
            server.load(pools[name], WARM_UP_S if seconds > 1 else 1.0, clients=8)
        phases: dict[str, dict[int, list[Answers]]] = {name: {c: [] for c in CLIENTS} for name in running}
        for clients in CLIENTS:
            for turn in range(turns):
                for name, server in running.items():
                    answers = server.load(pools[name], seconds, clients=clients).answers
                    phases[name][clients].append(answers)
                    say(f"  {clients} clients, turn {turn + 1}, {name}: {answers.rate_hz:.0f}/s")
        peaks = {name: sum(server.peak_mib().values()) for name, server in running.items()}
    return Comparison(spec.name, phases, peaks)


def blocks(comparison: Comparison) -> Iterator[Block]:
    """Yield the comparison for people."""
    kilobytes = f"{PICTURES.width}x{PICTURES.height} JPEG of about {PICTURES.kilobytes:.0f} KB"
    yield f"## {comparison.policy}: servers around the same Policy.infer, one worker each"
    yield (
        f"{kilobytes}, msgpack, median of alternating turns; in brackets ours over theirs. Our memory is "
        "without the gate's, which is a thread of this benchmark."
    )
    rows = []
    for name, loads in comparison.phases.items():
        lone = median(answers.latency.p50_ms for answers in loads[CLIENTS[0]])
        rates = {clients: _rate_hz(comparison, name, clients) for clients in CLIENTS[1:]}
        shown = [
            f"{rate:.0f} ({_rate_hz(comparison, OURS, clients) / rate:.2f})"
            for clients, rate in rates.items()
        ]
        failed = sum(answers.failed for turns in loads.values() for answers in turns)
        rows.append((name, f"{lone:.1f}", *shown, str(failed), f"{comparison.peak_mib[name]:.0f}"))
    columns = [f"{clients} clients [requests/s]" for clients in CLIENTS[1:]]
    yield Table(("server", "lone p50 [ms]", *columns, "failed", "peak memory [MiB]"), rows)


def _rate_hz(comparison: Comparison, name: str, clients: int) -> float:
    return max(1e-9, median(answers.rate_hz for answers in comparison.phases[name][clients]))


@contextmanager
def _peer(name: str, folder: Path, state: tuple[float, ...], picture: bytes) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", f"bench.peers.{name}_server", *PEERS[name], str(port)]
    environment = {**WORKER_ENVIRONMENT, **os.environ, FOLDER: str(folder)}
    log = folder.with_name(f"{name}.log")
    with (
        log.open("w") as said,
        subprocess.Popen(command, env=environment, stdout=said, stderr=said) as process,
    ):
        try:
            target = Target("127.0.0.1", port, "/inference", state)
            if not _answers(process, target, picture):
                raise RuntimeError(f"{name} does not answer:\n{log.read_text()[-3000:]}")
            yield Server(target, process.pid)
        finally:
            process.terminate()


def _answers(process: subprocess.Popen[bytes], to: Target, picture: bytes) -> bool:
    """Wait until a peer answers a request, or has ended, or its time is over."""
    values = {"command": bodies.repeated(1)[0]} | ({"state": to.state} if to.state else {})
    body, deadline = packed({"image": picture}, values), time.monotonic() + STARTUP_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.post(to.url, body, headers={"Content-Type": MSGPACK}, timeout=30).ok:
                return True
        except requests.RequestException:
            time.sleep(0.2)
    return False
