"""What one server was measured to take for a batch: all that a plan knows of a policy and its host."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

# Quantiles of a batch's duration over its mean that are kept.
QUANTILES = 41


class CurveError(ValueError):
    """A file holds no curve, or what was measured is not enough for one."""


class Loop(msgspec.Struct, frozen=True):
    """One closed loop: so many clients, each asks again as soon as it is answered."""

    clients: int
    requests: int
    # Right answers a second.
    rate_hz: float
    # As the clients see it [ms].
    p50_ms: float
    p95_ms: float
    mean_ms: float
    # Mean time in the gate's queue [ms].
    wait_ms: float
    # Batch size -> batches, and what they took together within TorchServe [s].
    batches: dict[int, int]
    batches_s: dict[int, float]
    # Durations over the mean of their loop and batch size.
    relative: list[float]
    # Cores that other programs took meanwhile; None where the server is on another host.
    bystanders: float | None

    @property
    def batch_of_request(self) -> float:
        """The mean size of the batch that a request was in."""
        total = sum(size * count for size, count in self.batches.items())
        return sum(size * size * count for size, count in self.batches.items()) / max(1, total)

    @property
    def taken_ms(self) -> float:
        """The mean duration of the batch that a request was in [ms]."""
        total = sum(size * count for size, count in self.batches.items())
        return 1000 * sum(size * taken for size, taken in self.batches_s.items()) / max(1, total)


class Curve(msgspec.Struct, frozen=True):
    """Batch latency by size, and what a request costs besides."""

    policy: str
    # Of the server; of the load generator where the server is another host.
    host: dict[str, Any]
    measured: str
    workers: int
    # Most requests of one batch.
    largest: int
    # Requests that may wait for a worker.
    waiting: int
    # Batch size -> mean time from handing the batch on until its answers [ms]; grows with the size.
    batch_ms: dict[int, float]
    # Quantiles of a batch's duration over its mean, ascending; their mean is 1.
    spread: list[float]
    # From a request's sending to the queue, and back from its batch to the client [ms].
    request_ms: float
    # By how much later each next answer of one batch reaches its client [ms].
    answer_ms: float
    # From the start of the server until it was ready [s]; None for one that ran already.
    start_s: float | None
    loops: list[Loop]

    def of(self, size: int) -> float:
        """Return the mean duration of a batch of so many requests [ms], beyond the largest measured too."""
        sizes, values = list(self.batch_ms), list(self.batch_ms.values())
        if size <= sizes[-1] or len(sizes) == 1:
            return float(np.interp(size, sizes, values)) * (size / sizes[-1] if size > sizes[-1] else 1.0)
        slope = (values[-1] - values[0]) / (sizes[-1] - sizes[0])
        return values[-1] + slope * (size - sizes[-1])

    def rate_hz(self, size: int) -> float:
        """Return the requests a second that all workers do in batches of one size."""
        return 1000 * self.workers * size / self.of(size)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")

    @classmethod
    def read(cls, path: Path) -> "Curve":
        """Read what `save` wrote.

        Raises:
            CurveError: there is no such file, or it is none.
        """
        try:
            curve = msgspec.json.decode(path.read_bytes(), type=cls)
        except OSError as error:
            raise CurveError(f"no curve at {path}: measure one with `python -m loadtest curve`") from error
        except msgspec.DecodeError as error:
            raise CurveError(f"{path} is no curve: {error}") from error
        if not curve.batch_ms or min(curve.batch_ms.values()) <= 0 or not curve.spread:
            raise CurveError(f"{path} is no curve: it measures no batch")
        return curve


def smoothed(loops: list[Loop]) -> dict[int, float]:
    """Return the mean duration of a batch by its size [ms], where a larger one never takes less.

    The sizes' means of all loops, weighted by how often they came, made monotone by pooling neighbours
    (pool adjacent violators, Ayer et al. 1955).

    Raises:
        CurveError: no batch was counted.
    """
    counts: dict[int, int] = {}
    sums_s: dict[int, float] = {}
    for loop in loops:
        for size, count in loop.batches.items():
            counts[size] = counts.get(size, 0) + count
            sums_s[size] = sums_s.get(size, 0.0) + loop.batches_s[size]
    if not counts:
        raise CurveError("the server counted no batch: is it one of this version, behind its gate?")
    pools: list[tuple[float, int, list[int]]] = []
    for size in sorted(counts):
        mean, weight, sizes = sums_s[size] / counts[size], counts[size], [size]
        while pools and pools[-1][0] > mean:
            other, more, others = pools.pop()
            mean = (mean * weight + other * more) / (weight + more)
            weight, sizes = weight + more, others + sizes
        pools.append((mean, weight, sizes))
    return {size: 1000 * mean for mean, _, sizes in pools for size in sizes}


def costs_ms(loops: list[Loop]) -> tuple[float, float]:
    """Return what a request takes outside queue and batch [ms]: fixed, and for each answer before its own.

    A straight line through the loops: latency without queue and batch, over the answers before its own.
    """
    left = np.array([max(0.0, loop.mean_ms - loop.wait_ms - loop.taken_ms) for loop in loops])
    before = np.array([(loop.batch_of_request - 1) / 2 for loop in loops])
    if np.ptp(before) < 0.5:
        return float(left.mean()), 0.0
    weights = np.sqrt([loop.requests for loop in loops])
    slope, fixed = np.polyfit(before, left, 1, w=weights)
    if slope < 0:
        return float(np.average(left, weights=weights**2)), 0.0
    return max(0.0, float(fixed)), float(slope)


def spread(loops: list[Loop]) -> list[float]:
    """Return quantiles of a batch's duration over its mean; their mean is 1."""
    values = np.array([value for loop in loops for value in loop.relative] or [1.0])
    found = np.quantile(values, np.linspace(0.0, 1.0, QUANTILES))
    return (found / np.trapezoid(found, dx=1 / (QUANTILES - 1))).tolist()


def summary(curve: Curve) -> Mapping[str, str]:
    """Return the curve's figures in words, for a page."""
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if size <= max(*curve.batch_ms, 1)]
    return {
        "policy": curve.policy,
        "measured": curve.measured,
        "host": ", ".join(f"{name} {value}" for name, value in curve.host.items() if value is not None),
        "workers": str(curve.workers),
        **{f"batch of {size}": f"{curve.of(size):.1f} ms" for size in sizes},
        "a request besides": f"{curve.request_ms:.1f} ms, and {curve.answer_ms:.2f} ms an answer before it",
    }
