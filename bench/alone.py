"""The policy without a server, in a process of its own: what the served figures are held against."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch

from archive.read import unpack
from bench.load import Latency
from server.process import WORKER_ENVIRONMENT
from vla_runtime.observation import Row, decode
from vla_runtime.policy import Answer, Policy
from vla_runtime.preprocessing import decoded, picture
from vla_runtime.staging import Inputs

T = TypeVar("T")


@dataclass(frozen=True)
class Alone:
    """Latency and throughput of the policy in a process that does nothing else."""

    # Artifact on tensors that are ready, batch 1.
    artifact: Latency
    # Artifact + preprocessing of a JPEG file, batch 1.
    policy: Latency
    # Bucket -> observations a second, on tensors that are ready.
    artifact_hz: dict[int, float]
    # Bucket -> requests a second, JPEG files in and safe actions out.
    policy_hz: dict[int, float]


@dataclass(frozen=True)
class Split:
    """Where preprocessing goes, one picture in one thread [ms]."""

    decode_ms: float
    resize_ms: float


class Process:
    """A process that holds one policy; every method runs in it."""

    def __init__(self, archive: Path) -> None:
        """Start the process as a lone worker would run: its environment, device and number of threads."""
        os.environ.update({**WORKER_ENVIRONMENT, **os.environ})
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
        arguments = (archive, len(os.sched_getaffinity(0)), device)
        self._executor = ProcessPoolExecutor(1, get_context("spawn"), _load, arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()

    def measure(self, rows: Sequence[Row], seconds: float) -> Alone:
        """Measure everything, about `seconds` for each figure [s]."""
        return self._call(_measure, rows, seconds)

    def rate(self, rows: Sequence[Row], bucket: int, seconds: float) -> float:
        """Return requests a second of artifact + preprocessing in batches of `bucket`, over `seconds`."""
        return self._call(_rate, rows, bucket, seconds)

    def latency(self, rows: Sequence[Row], seconds: float) -> Latency:
        """Return the latency of artifact + preprocessing, one request after another."""
        return self._call(_latency, rows, seconds)

    def split(self, rows: Sequence[Row], seconds: float) -> Split:
        """Return how much of preprocessing is decoding."""
        return self._call(_split, rows, seconds)

    def describe(self) -> dict[str, Any]:
        """Return the policy's name, picture size, parameters' precision, state size and buckets."""
        return self._call(_describe)

    def peak_mib(self) -> float:
        """Return the most memory that the process has had resident [MiB]."""
        return self._call(_peak_mib)

    def _call(self, function: Callable[..., T], *arguments: object) -> T:
        return self._executor.submit(function, *arguments).result()


def _load(archive: Path, threads: int, device: str) -> None:
    """Load the policy into this process."""
    global _policy  # noqa: PLW0603  (the process exists for this one object)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        _policy = Policy.load(unpack(archive, Path(folder)), device, threads)
    _policy.warm_up()


_policy: Policy


def _measure(rows: Sequence[Row], seconds: float) -> Alone:
    buckets = _policy.spec.artifact.buckets
    inputs = _inputs(rows)
    artifact, artifact_s = _policy._artifact, []
    for index in _until(seconds):
        begin = time.perf_counter()
        artifact([inputs[index % len(inputs)]])
        artifact_s.append(time.perf_counter() - begin)
    return Alone(
        artifact=Latency.of(artifact_s),
        policy=_latency(rows, seconds),
        artifact_hz={bucket: _throughput(artifact, inputs, bucket, seconds) for bucket in buckets},
        policy_hz={bucket: _throughput(_answer, rows, bucket, seconds) for bucket in buckets},
    )


def _latency(rows: Sequence[Row], seconds: float) -> Latency:
    taken_s = []
    for index in _until(seconds):
        begin = time.perf_counter()
        _answer([rows[index % len(rows)]])
        taken_s.append(time.perf_counter() - begin)
    return Latency.of(taken_s)


def _rate(rows: Sequence[Row], bucket: int, seconds: float) -> float:
    return _throughput(_answer, rows, bucket, seconds)


def _answer(rows: Sequence[Row]) -> None:
    """Answer a batch and make sure that every row was answered."""
    if refused := [answer for answer in _policy.infer(rows) if not isinstance(answer, Answer)]:
        raise RuntimeError(f"the policy refused a request: {refused[0]}")


def _throughput(
    step: Callable[[Sequence[Any]], object], items: Sequence[Any], bucket: int, seconds: float
) -> float:
    """Return items a second when `step` is called on batches of `bucket`, at least three of them."""
    count, begin = 0, time.perf_counter()
    while count < 3 * bucket or time.perf_counter() - begin < seconds:
        step([items[(count + offset) % len(items)] for offset in range(bucket)])
        count += bucket
    return count / (time.perf_counter() - begin)


def _split(rows: Sequence[Row], seconds: float) -> Split:
    spec = _policy.spec
    camera, decode_s, whole_s = spec.cameras[0], [], []
    for index in _until(seconds):
        begin = time.perf_counter()
        observation = decode(rows[index % len(rows)], spec, time.time())
        decoded(observation.images[0][-1], camera)
        decode_s.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        observation = decode(rows[index % len(rows)], spec, time.time())
        picture(observation.images[0][-1], camera)
        whole_s.append(time.perf_counter() - begin)
    part, whole = float(np.median(decode_s)) * 1000, float(np.median(whole_s)) * 1000
    return Split(part, max(0.0, whole - part))


def _inputs(rows: Sequence[Row]) -> list[Inputs]:
    return [_policy.prepare(row, time.time()) for row in rows]


def _describe() -> dict[str, Any]:
    spec = _policy.spec
    return {
        "name": spec.name,
        "picture_pixels": spec.cameras[0].width,
        "precision": spec.artifact.precision,
        "state": spec.state_size,
        "buckets": list(spec.artifact.buckets),
        "device": str(_policy.device),
        "threads": torch.get_num_threads(),
    }


def _peak_mib() -> float:
    return peak_mib(os.getpid())


def peak_mib(pid: int) -> float:
    """Return the most memory that a process has had resident so far [MiB]."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _until(seconds: float) -> Any:
    """Count 0, 1, 2 ... until the time is over, at least five times."""
    begin, index = time.perf_counter(), 0
    while index < 5 or time.perf_counter() - begin < seconds:
        yield index
        index += 1
