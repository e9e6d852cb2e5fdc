"""Faults of a server: its processes killed, hung or stopped, its policy failing, its archive damaged."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil

from bench.faults import archives
from bench.faults.processes import ROOT
from bench.faults.robots import Robots, counted
from bench.faults.setup import LARGE, SetUp, alone_command, copied
from server.ports import free_port


def kill_worker(at: SetUp, robots: Robots) -> None:
    """Kill it between two batches."""
    robots.pause()
    time.sleep(0.3)  # nothing is under way any more
    at.running.worker.kill()
    robots.resume()


def kill_worker_in_batch(at: SetUp, _robots: Robots) -> None:
    """Kill it while it has a batch: stopped first, it holds the one that it has been given."""
    worker = at.running.worker
    worker.suspend()
    time.sleep(0.3)
    worker.kill()


def kill_worker_collecting(at: SetUp, _robots: Robots) -> str:
    """Kill it when it has read a part of a batch: requests of 3 MB are longer than the socket's buffers."""
    worker = at.running.worker
    worker.suspend()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(at.post, LARGE) for _ in range(2)]
        time.sleep(0.3)
        worker.kill()
    statuses = Counter(answer.result() for answer in asked)
    return f"two requests of 3 MB that it was reading: {counted(statuses)}"


def hang(at: SetUp, _robots: Robots, hung_s: float) -> str:
    """Stop the worker for so long [s], or until it is given up."""
    worker = at.running.worker
    worker.suspend()
    began = time.monotonic()
    while worker.is_running() and time.monotonic() < began + hung_s:
        time.sleep(0.05)
    if worker.is_running():
        worker.resume()
        return f"it went on by itself after {hung_s:g} s"
    return f"given up after {time.monotonic() - began:.1f} s"


def tell(at: SetUp, _robots: Robots, what: str) -> str | None:
    """Let the policy fail for 3 s; white pictures are what it may fail on alone."""
    at.places.switch.write_text(what)
    white = {"image": archives.png(archives.grey(255), at.places.folder / "white.png")}
    statuses = Counter[int]()
    end_s = time.monotonic() + 3
    try:
        while time.monotonic() < end_s:
            if what == "row":
                statuses[at.post(white)] += 1
            time.sleep(0.05)
    finally:
        at.places.switch.unlink()
    return f"the row itself: {counted(statuses)}" if statuses else None


def damaged_archive(at: SetUp, _robots: Robots, damage: str) -> str:
    """Swap it in, or where there is no swap, start with it."""
    places, name = at.places, damage.rpartition(" ")[2]
    archive = archives.DAMAGES[damage](places.archive, places.folder / f"{name}.mar")
    if at.way == "deployed":
        port = str(at.running.torchserve_port)
        command = [sys.executable, "-m", "server.swap", archive, "--port", port, "--model", "vla"]
    else:
        command = alone_command(archive, free_port())
    began = time.monotonic()
    run = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    said = next((line for line in run.stderr.splitlines() if line.startswith("error: ")), "nothing")
    said = said.replace(f"{places.folder}/", "").partition(". Its last log lines")[0]
    did = "swap" if at.way == "deployed" else "start"
    return f"{did} refused with status {run.returncode} after {time.monotonic() - began:.1f} s: `{said}`"


def replaced_archive(at: SetUp, _robots: Robots) -> str:
    """Overwrite the file, then make the server load again: a worker is killed."""
    places = at.places
    kept = copied(places.archive, places.folder / "kept.mar")
    other = archives.write_fragile(places.folder / "other.mar", places.switch, "2.0", gain=-0.5)
    try:
        places.archive.write_bytes(other.read_bytes())
        at.running.worker.kill()
        time.sleep(4)
    finally:
        places.archive.write_bytes(kept.read_bytes())
    return "the worker that came after it loads what was unpacked at the start"


def kill_front_end(at: SetUp, _robots: Robots) -> str:
    """Kill Java."""
    at.running.java.kill()
    return _ended(at)


def kill_gate(at: SetUp, _robots: Robots) -> str:
    """Kill the gate, which lives in the process that started TorchServe."""
    server = at.servers[0]
    rest = server.family()[:-1]
    os.kill(server.running.process.pid, signal.SIGKILL)
    said = _ended(at)
    left = psutil.wait_procs(rest, timeout=10)[1]
    for process in left:
        process.kill()
    return f"{said}; {len(left)} of its {len(rest)} processes were left behind"


def _ended(at: SetUp) -> str:
    """Wait until the server ended, and say how."""
    server = at.servers[0]
    before, began = len(server.ends), time.monotonic()
    while len(server.ends) == before and time.monotonic() < began + 30:
        time.sleep(0.01)
    if len(server.ends) == before:
        return "the server did not end"
    ended_s, status = server.ends[-1]
    return f"the server ended with status {status} after {ended_s - began:.1f} s and was started again"


def lose_replica(at: SetUp, _robots: Robots) -> None:
    """Kill all processes of the first one."""
    for process in at.servers[0].family():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def drain(at: SetUp, _robots: Robots) -> str:
    """Ask the server to stop."""
    at.running.process.send_signal(signal.SIGTERM)
    return _ended(at)
