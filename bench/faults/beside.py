"""Attacks beside good robots, through the proxy: what the robots notice of them."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import requests

from archive.read import Archive
from bench.faults import archives, hostile, records
from bench.faults.attackers import Found, Plan
from bench.faults.hostile import Attack
from bench.faults.processes import ROOT, Running, proxy, replica
from bench.faults.robots import GOOD, Ask, Outcome, Robots
from bench.machine import Machine
from loadtest.body import MSGPACK
from loadtest.judge import percentile

ROBOTS = 8
ATTACKERS_KEY, ROBOTS_KEY = "attackers-key", "robots-key"
# The proxy's own defaults, and none.
RATE, NO_RATE, BYTES_PER_S = "200r/s", "100000r/s", 20_000_000
# The robots' p95 under attack, against that right before it.
MOST_RATIO = 1.5
# Robots ask for so long before the first measurement [s].
WARM_UP_S = 8.0


@dataclass(frozen=True)
class Window:
    """What the robots saw in a stretch of time."""

    requests: int
    # Answers that were not 200, by what they were, and wrong ones.
    errors: dict[str, int]
    p50_ms: float
    p95_ms: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], begin_s: float, end_s: float) -> "Window":
        """Summarise the requests that were sent between two moments on the monotonic clock."""
        ours = [outcome for outcome in outcomes if begin_s <= outcome.sent_s < end_s]
        errors: dict[str, int] = {}
        for outcome in ours:
            kind = outcome.kind if outcome.right else "wrong"
            if kind != GOOD:
                errors[kind] = errors.get(kind, 0) + 1
        took_s = [outcome.ended_s - outcome.sent_s for outcome in ours] or [float("nan")]
        p50, p95 = (1000 * percentile(took_s, percent) for percent in (50, 95))
        return cls(len(ours), errors, p50, p95)

    @property
    def failed(self) -> str:
        """How many requests failed, of how many."""
        return f"{sum(self.errors.values())} of {self.requests}"

    @property
    def times(self) -> str:
        """Median and 95th percentile [ms]."""
        return f"{self.p50_ms:.0f}, {self.p95_ms:.0f}"


@dataclass(frozen=True)
class Result:
    """One attack, and the robots before and during it."""

    attack: str
    connections: int
    seconds: float
    quiet: Window
    beside: Window
    found: Found
    machine: Machine

    @property
    def ratio(self) -> float:
        """The robots' p95 during the attack over that right before it."""
        return self.beside.p95_ms / self.quiet.p95_ms

    @property
    def kept(self) -> bool:
        """Whether the robots saw no error, and waited little longer."""
        return not self.beside.errors and self.ratio <= MOST_RATIO


def attacks(archive: Path, folder: Path, seconds: float, only: Sequence[str]) -> None:
    """Attack a replica of an archive behind its proxy, and leave each attack's result in the folder."""
    rows = good_rows(archive)
    wanted = [
        attack
        for attack in hostile.attacks(rows[0], ATTACKERS_KEY, ROBOTS_KEY)
        if not only or any(word in attack.name for word in only)
    ]
    _run(archive, folder, seconds, wanted, ("attack", RATE))


def overload(archive: Path, folder: Path, seconds: float) -> None:
    """Ask for more than a replica can answer, and leave the result in the folder."""
    wanted = hostile.overload(good_rows(archive), ATTACKERS_KEY)
    _run(archive, folder, seconds, wanted, ("overload", NO_RATE))


def read(folder: Path, kind: str) -> list[Result]:
    """Return the results in a folder, `attack` or `overload`, in the order of their measurement."""
    files = sorted(folder.glob(f"{kind}-*.json"), key=lambda file: file.stat().st_mtime)
    return [msgspec.json.decode(file.read_bytes(), type=Result) for file in files]


def _run(
    archive: Path, folder: Path, seconds: float, wanted: Sequence[Attack], named: tuple[str, str]
) -> None:
    kind, rate = named
    folder.mkdir(parents=True, exist_ok=True)
    with served(archive, rate) as (front, behind):
        asks = [_ask(behind.port, row) for row in good_rows(archive)]
        with Robots(front.port, asks) as robots:
            time.sleep(WARM_UP_S)
            for attack in wanted:
                result = _beside(attack, front.port, robots, seconds)
                records.keep(result, records.file_of(folder, kind, attack.name))
                print(f"{attack.name}: {line(result)}", flush=True)


def line(result: Result) -> str:
    """Say a result in a line."""
    quiet, beside = result.quiet, result.beside
    errors = f"{sum(beside.errors.values())} errors of {beside.requests} {beside.errors or ''}"
    times = (
        f"p50 {quiet.p50_ms:.1f} -> {beside.p50_ms:.1f} ms, p95 {quiet.p95_ms:.1f} -> {beside.p95_ms:.1f} ms"
    )
    return f"{errors}, {times}, ratio {result.ratio:.2f}; attackers {result.found.answers}"


def _beside(attack: Attack, port: int, robots: Robots, seconds: float) -> Result:
    quiet_s = max(5.0, seconds / 3)
    began = time.monotonic()
    time.sleep(quiet_s)
    quiet_end = time.monotonic()
    plan = Plan(port, seconds, attack.connections, attack.requests, attack.slow, attack.heeds)
    with attacking(plan) as process:
        said, _ = process.communicate(timeout=seconds + 60)
    ended = time.monotonic()
    time.sleep(2)  # what it left in the queues
    return Result(
        attack=attack.name,
        connections=attack.connections,
        seconds=seconds,
        quiet=Window.of(robots.outcomes, began, quiet_end),
        beside=Window.of(robots.outcomes, quiet_end, ended),
        found=msgspec.json.decode(said, type=Found),
        machine=records.measured_on(),
    )


@contextlib.contextmanager
def attacking(plan: Plan) -> Iterator[subprocess.Popen[bytes]]:
    """Run attackers in their own process."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(msgspec.msgpack.encode(plan))
        command = [sys.executable, "-m", "bench.faults.attackers", file.name]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            try:
                yield process
            finally:
                process.kill()


@contextlib.contextmanager
def served(archive: Path, rate: str) -> Iterator[tuple[Running, Running]]:
    """Serve behind the proxy, on half of the cores; whoever asks has the others. Yields proxy and replica."""
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    with tempfile.TemporaryDirectory(prefix="vla-faults-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "vla.mar").write_bytes(archive.read_bytes())
        served = archives.with_digest(folder / "vla.mar")
        keys = folder / "keys"
        keys.write_text(f"{ROBOTS_KEY} robots\n{ATTACKERS_KEY} attackers\n")
        os.sched_setaffinity(0, cores[:half])
        stack.callback(os.sched_setaffinity, 0, cores)
        behind = stack.enter_context(replica(served, folder))
        settings = {"RATE": rate} | ({"BYTES_PER_S": BYTES_PER_S} if rate == RATE else {})
        front = stack.enter_context(proxy(folder, behind.port, AUTH="keys", KEYS_FILE=keys, **settings))
        os.sched_setaffinity(0, cores[half:] or cores)
        yield front, behind


def good_rows(archive: Path) -> list[dict[str, Any]]:
    """Return a request for each robot, like the archived example."""
    example = Archive.open(archive).example
    assert example is not None, f"{archive} has no example"
    images = {name: data for name, (_, data) in example.images.items()}
    return hostile.good_rows(images, example.values, ROBOTS)


def _ask(port: int, row: dict[str, Any]) -> Ask:
    """Return a robot's request with the answer that it gets while it is alone."""
    body = msgspec.msgpack.encode(row)
    url = f"http://127.0.0.1:{port}{hostile.PATH}"
    alone = requests.post(url, body, headers={"Content-Type": MSGPACK}, timeout=60)
    actions = np.array(alone.json()["actions"])
    return Ask(body, {"Content-Type": MSGPACK, "X-API-Key": ROBOTS_KEY}, actions)
