"""How busy this host is with programs that have no part in the load test."""

import os
import time
from collections.abc import Iterable

import psutil


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
