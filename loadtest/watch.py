"""Reads the server's own metrics and memory while a load test runs."""

import re
import shutil
import subprocess
import threading
import time
from typing import Self

import msgspec
import psutil
import requests

from loadtest.host import Bystanders

PERIOD_S = 1.0
TIMEOUT_S = 5.0

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*?),?\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

# (metric, labels but the host's) -> value
Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Reading(msgspec.Struct, frozen=True, array_like=True):
    """The server's memory at one moment."""

    # [s since the epoch]
    time_s: float
    # Resident memory of all workers [bytes].
    resident: float
    # Memory in use on all accelerators [bytes]; None where there is none.
    accelerator: float | None = None


def parse(text: str) -> Metrics:
    """Read metrics in Prometheus' text format; the host's name is no label here."""
    metrics: Metrics = {}
    for name, labels, value in _LINE.findall(text):
        pairs = frozenset(pair for pair in _LABEL.findall(labels) if pair[0] != "Hostname")
        metrics[name, pairs] = float(value)
    return metrics


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """Return the sum of a metric's values over all labels that are not given; 0 where there is none."""
    wanted = set(labels.items())
    return sum(value for (metric, pairs), value in metrics.items() if metric == name and wanted <= pairs)


class ServerNumbers(msgspec.Struct, frozen=True):
    """What the server counted between two readings of its metrics."""

    # Stage -> mean time of a batch [ms].
    stages_ms: dict[str, float]
    batches: int
    # Mean size of a batch [requests].
    batch_size: float | None
    # Share of commands whose encoding was in the cache.
    command_cache_hits: float | None
    deadline_misses: int
    # Action of the safety limits -> chunks.
    safety_interventions: dict[str, int]
    # Error's code -> requests.
    errors: dict[str, int]


def between(before: Metrics, after: Metrics) -> ServerNumbers:
    """Return what was counted between two readings of one server; a metric that is absent counts as 0."""

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    def by(name: str, label: str) -> dict[str, int]:
        values = {dict(pairs)[label] for metric, pairs in after if metric == name}
        counts = {value: round(grown(name, **{label: value})) for value in sorted(values)}
        return {value: count for value, count in counts.items() if count}

    stages = {dict(pairs)["stage"] for metric, pairs in after if metric == "vla_stage_seconds_count"}
    batches, uses = grown("vla_batch_requests_count"), grown("vla_command_cache_total")
    return ServerNumbers(
        stages_ms={
            stage: 1000 * grown("vla_stage_seconds_sum", stage=stage) / count
            for stage in sorted(stages)
            if (count := grown("vla_stage_seconds_count", stage=stage))
        },
        batches=round(batches),
        batch_size=grown("vla_batch_requests_sum") / batches if batches else None,
        command_cache_hits=grown("vla_command_cache_total", result="hit") / uses if uses else None,
        deadline_misses=round(grown("vla_deadline_misses_total")),
        safety_interventions=by("vla_safety_interventions_total", "action"),
        errors=by("vla_request_errors_total", "code"),
    )


class Watch:
    """Reads memory once a second: `with Watch(management_url, metrics_url, model) as watch: ...`.

    On the server's own host a process's resident memory comes from the system, and an accelerator's from
    nvidia-smi; elsewhere both come from the metrics that the workers report. What can't be read is left out.
    """

    def __init__(self, management_url: str, metrics_url: str, model: str, *, same_host: bool) -> None:
        self.readings: list[Reading] = []
        self._describe = f"{management_url}/models/{model}"
        self._metrics_url = metrics_url
        self._same_host = same_host
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read_all, daemon=True)
        # Cores that other programs took meanwhile; None where the server is on another host.
        self.bystanders: float | None = None
        self._before: Metrics | None = None
        self._after: Metrics | None = None

    @property
    def numbers(self) -> ServerNumbers | None:
        """What the server counted meanwhile; None when its metrics could not be read twice."""
        return between(self._before, self._after) if self._before and self._after else None

    def __enter__(self) -> Self:
        self._before = self._metrics()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _read_all(self) -> None:
        counted = Bystanders(self._workers()) if self._same_host else None
        while not self._over.is_set():
            metrics = self._metrics()
            self._after = metrics or self._after
            reading = self._local() if self._same_host else None
            if reading := reading or _reported(metrics or {}):
                self.readings.append(reading)
            self._over.wait(PERIOD_S)
            self.bystanders = counted.cores() if counted else None
        self._after = self._metrics() or self._after

    def _metrics(self) -> Metrics | None:
        try:
            answer = requests.get(self._metrics_url, timeout=TIMEOUT_S)
        except requests.RequestException:
            return None
        return parse(answer.text) if answer.ok else None

    def _local(self) -> Reading | None:
        """Read the workers' processes; None when the server does not say which, or they are not here."""
        workers = self._workers()
        try:
            resident = sum(psutil.Process(pid).memory_info().rss for pid in workers)
        except psutil.Error:
            return None
        accelerator = accelerator_bytes() if any(workers.values()) else None
        return Reading(time.time(), resident, accelerator) if workers else None

    def _workers(self) -> dict[int, bool]:
        """Return the workers' process ids, and whether each has an accelerator."""
        try:
            workers = requests.get(self._describe, timeout=TIMEOUT_S).json()[0]["workers"]
            return {worker["pid"]: worker["gpu"] for worker in workers if worker["pid"] > 0}
        except (requests.RequestException, ValueError, KeyError):
            return {}


def accelerator_bytes() -> float | None:
    """Return the memory in use on this host's NVIDIA devices [bytes], None without any."""
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    query = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    run = subprocess.run(query, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    used = [float(line) for line in run.stdout.splitlines() if line.strip().isdigit()]
    return sum(used) * 2**20 if run.returncode == 0 and used else None


def _reported(metrics: Metrics) -> Reading | None:
    """Return the memory that the workers report of themselves, None where they do not."""
    memory = {pairs: value for (name, pairs), value in metrics.items() if name == "vla_memory_bytes"}
    if not memory:
        return None
    # Every worker reports the whole device: the largest, not the sum.
    devices = [value for pairs, value in memory.items() if ("kind", "accelerator") in pairs]
    resident = total(metrics, "vla_memory_bytes", kind="resident")
    return Reading(time.time(), resident, max(devices, default=None))
