"""The policy without a server, in a process of its own: what the served figures are held against."""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import ParamSpec, Self, TypeVar

import torch
from PIL.Image import Image

from archive.read import unpack
from bench.answers import answers
from bench.load import Latency
from bench.timing import taken_s
from loadtest.host import peak_mib
from server.process import WORKER_ENVIRONMENT
from vla_runtime.observation import Row, decode
from vla_runtime.policy import Policy
from vla_runtime.preprocessing import decoded, picture
from vla_runtime.spec import Precision

Given = ParamSpec("Given")
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
class Described:
    """What policy it is, and where it is computed."""

    name: str
    picture_pixels: int
    precision: Precision
    # S
    state: int
    device: str
    threads: int


@dataclass(frozen=True)
class Split:
    """Where preprocessing goes, one picture in one thread [ms]."""

    decode_ms: float
    resize_ms: float


class Process:
    """A process that holds one policy: `process.call(rate, rows, bucket, seconds)` runs a function in it."""

    def __init__(self, archive: Path, device: str | None = None) -> None:
        """Start the process as a lone worker would run: its environment, device and number of threads."""
        os.environ.update({**WORKER_ENVIRONMENT, **os.environ})
        device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        arguments = (archive, len(os.sched_getaffinity(0)), device)
        self._executor = ProcessPoolExecutor(1, get_context("spawn"), _load, arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()

    def call(self, function: Callable[Given, T], *arguments: Given.args, **named: Given.kwargs) -> T:
        """Run one of this module's functions beside the policy."""
        return self._executor.submit(function, *arguments, **named).result()


def _load(archive: Path, threads: int, device: str) -> None:
    """Load the policy into this process."""
    global _policy, _example  # noqa: PLW0603  (the process exists for them)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        _policy = Policy.load(unpack(archive, Path(folder)), device, threads)
        _example = _policy.example_row(Path(folder))
    _policy.warm_up()


_policy: Policy
_example: Row


def everything(rows: Sequence[Row], seconds: float) -> Alone:
    """Measure all that `Alone` says, about `seconds` for each figure [s]."""
    buckets = _policy.spec.artifact.buckets
    inputs = [_policy.prepare(row, time.time()) for row in rows]
    return Alone(
        artifact=Latency.of(_taken_s(_policy.compute, inputs, seconds)),
        policy=latency(rows, seconds),
        artifact_hz={bucket: _throughput(_policy.compute, inputs, bucket, seconds) for bucket in buckets},
        policy_hz={bucket: _throughput(_answer, rows, bucket, seconds) for bucket in buckets},
    )


def latency(rows: Sequence[Row], seconds: float) -> Latency:
    """Return the latency of artifact + preprocessing, one request after another."""
    return Latency.of(_taken_s(_answer, rows, seconds))


def rate(rows: Sequence[Row], bucket: int, seconds: float) -> float:
    """Return requests a second of artifact + preprocessing in batches of `bucket`, over `seconds`."""
    return _throughput(_answer, rows, bucket, seconds)


def batch_ms(size: int) -> float:
    """Return the median time from encoded pictures to safe chunks of that many examples [ms]."""
    return 1000 * median(taken_s(lambda: _answer([_example] * size), least=50, warm_up=5))


def _answer(rows: Sequence[Row]) -> None:
    answers(_policy, rows)


def _taken_s(step: Callable[[Sequence[T]], object], items: Sequence[T], seconds: float) -> list[float]:
    """Return how long `step` takes with each item alone [s], one after another for `seconds`."""
    turns = itertools.cycle(items)
    return taken_s(lambda: step([next(turns)]), seconds, least=5)


def _throughput(
    step: Callable[[Sequence[T]], object], items: Sequence[T], bucket: int, seconds: float
) -> float:
    """Return items a second when `step` is called on batches of `bucket`, at least three of them."""
    turns = itertools.cycle(items)
    batches = taken_s(lambda: step([next(turns) for _ in range(bucket)]), seconds, least=3)
    return bucket * len(batches) / sum(batches)


def split(rows: Sequence[Row], seconds: float) -> Split:
    """Return how much of preprocessing is decoding."""

    def decode_one(row: Sequence[Row]) -> None:
        decoded(_image(row[0]), _policy.spec.cameras[0])

    def decode_and_resize(row: Sequence[Row]) -> None:
        picture(_image(row[0]), _policy.spec.cameras[0])

    part, whole = (1000 * median(_taken_s(step, rows, seconds)) for step in (decode_one, decode_and_resize))
    return Split(part, max(0.0, whole - part))


def _image(row: Row) -> Image:
    """Return the request's picture, its headers read."""
    return decode(row, _policy.spec, time.time()).images[0][-1]


def describe() -> Described:
    """Return what the policy is."""
    spec = _policy.spec
    return Described(
        name=spec.name,
        picture_pixels=spec.cameras[0].width,
        precision=spec.artifact.precision,
        state=spec.state_size,
        device=str(_policy.device),
        threads=torch.get_num_threads(),
    )


def own_peak_mib() -> float:
    """Return the most memory that the process has had resident [MiB]."""
    return peak_mib(os.getpid())
