"""Memory over many requests: what the front end, the worker and the server's own process grow by."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import psutil

from bench.faults import hostile, records
from bench.faults.attackers import Found, Plan
from bench.faults.beside import ATTACKERS_KEY, NO_RATE, attacking, good_rows, served
from bench.faults.processes import Running
from bench.machine import Machine

CONNECTIONS = 16
# Between two readings [s].
EVERY_S = 10.0
# Share of the requests before the first reading that counts: heaps and caches fill.
WARM_UP = 0.2


@dataclass(frozen=True)
class Result:
    """Readings of memory in one run."""

    # Requests answered before each reading.
    requests: list[int]
    # Resident memory at each [MiB], by process.
    resident_mib: dict[str, list[float]]
    # Answers by status.
    answers: dict[str, int]
    machine: Machine

    def slope_mib(self, process: str) -> float:
        """Return a process's growth for 10,000 requests, of a straight line after the warm-up [MiB]."""
        kept = [place for place, count in enumerate(self.requests) if count >= WARM_UP * self.requests[-1]]
        counts = np.array([self.requests[place] for place in kept]) / 10_000
        resident = np.array([self.resident_mib[process][place] for place in kept])
        return float(np.polyfit(counts, resident, 1)[0])


def run(archive: Path, folder: Path, count: int) -> None:
    """Ask for `count` requests through the proxy, and leave the readings in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    good = hostile.overload(good_rows(archive), ATTACKERS_KEY)[0].requests
    requests, answers, resident = [0], dict[str, int](), dict[str, list[float]]()
    with served(archive, NO_RATE) as (front, behind):
        _note(behind, resident)
        while requests[-1] < count:
            with attacking(Plan(front.port, EVERY_S, CONNECTIONS, good)) as process:
                said, _ = process.communicate(timeout=EVERY_S + 60)
            for status, number in msgspec.json.decode(said, type=Found).answers.items():
                answers[status] = answers.get(status, 0) + number
            requests.append(answers.get("200", 0))
            _note(behind, resident)
            last = [f"{name} {readings[-1]:.0f} MiB" for name, readings in resident.items()]
            print(f"{requests[-1]} requests: {', '.join(last)}", flush=True)
    records.keep(Result(requests, resident, answers, records.measured_on()), folder / "memory.json")


def read(folder: Path) -> Result | None:
    """Return the last run's readings."""
    file = folder / "memory.json"
    return msgspec.json.decode(file.read_bytes(), type=Result) if file.exists() else None


def _note(behind: Running, resident: dict[str, list[float]]) -> None:
    processes = {
        "server": psutil.Process(behind.process.pid),
        "front end": behind.java,
        "worker": behind.worker,
    }
    for name, process in processes.items():
        resident.setdefault(name, []).append(process.memory_info().rss / 2**20)
