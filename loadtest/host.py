"""The host: what it is, what a process takes of it, and how busy other programs keep it."""

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil


def describe() -> dict[str, Any]:
    """Return what decides how fast this host is, and how busy it is now."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        # Processes that want a core, mean of the last minute: above our own, the figures suffer.
        "load_average": round(os.getloadavg()[0], 2),
    }


def peak_mib(pid: int) -> float:
    """Return the most memory that a process has had resident so far [MiB]."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


class Bystanders:
    """CPU that other programs take, between two calls of `cores`."""

    def __init__(self, servers: Iterable[int] = ()) -> None:
        """Begin to count; `servers` are the process ids of the server's workers."""
        self._processes = _family(servers)
        self._before = time.monotonic(), _host_s(), self._own_s()

    def cores(self) -> float:
        """Return the cores that other programs took since the beginning, in the mean."""
        now, host_s, own_s = time.monotonic(), _host_s(), self._own_s()
        then, host_before_s, own_before_s = self._before
        return max(0.0, (host_s - host_before_s) - (own_s - own_before_s)) / (now - then)

    def _own_s(self) -> float:
        """Return the CPU time of the server, of this process and of its children, ended ones included [s]."""
        times = os.times()
        total = times.user + times.system + times.children_user + times.children_system
        for process in (*self._processes, *psutil.Process().children(recursive=True)):
            try:
                spent = process.cpu_times()
            except psutil.Error:
                continue
            total += spent.user + spent.system
        return total


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _host_s() -> float:
    """Return the CPU time that this host has spent on anything [s]."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _family(workers: Iterable[int]) -> list[psutil.Process]:
    """Return the workers and the process that started them: the server's front end."""
    found: dict[int, psutil.Process] = {}
    for pid in workers:
        try:
            worker = psutil.Process(pid)
            found[pid] = worker
            if (front_end := worker.parent()) is not None and front_end.pid > 1:
                found[front_end.pid] = front_end
        except psutil.Error:
            continue
    return list(found.values())
