"""What the gate counts, as Prometheus text. All of it exists from the start."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping

# Answers of the gate itself, by their code.
CODES = (
    "bad_request",
    "malformed_body",
    "unsupported_media_type",
    "too_large",
    "slow_request",
    "overloaded",
    "deadline_expired",
    "timeout",
    "unavailable",
    "server_error",
    "not_found",
    "method_not_allowed",
    "not_ready",
)
# Upper ends of a histogram's buckets [s]. TorchServe's own begin at 5 ms.
BUCKETS_S = (
    *(0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0),
)


class Histogram:
    """Durations [s] by bucket."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._sum_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one."""
        self._counts[bisect_left(BUCKETS_S, duration_s)] += 1
        self._sum_s += duration_s

    def lines(self, name: str, help_text: str) -> list[str]:
        """Return it in Prometheus' text format."""
        lines, below = [f"# HELP {name} {help_text}", f"# TYPE {name} histogram"], 0
        for end, count in zip((*map(str, BUCKETS_S), "+Inf"), self._counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{end}"}} {below}')
        return [*lines, f"{name}_sum {self._sum_s:.6f}", f"{name}_count {below}"]


class Batches:
    """How long batches took within TorchServe, by how many requests they had."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._sums_s: defaultdict[int, float] = defaultdict(float)

    def add(self, size: int, took_s: float) -> None:
        """Count one."""
        self._counts[size] += 1
        self._sums_s[size] += took_s

    def lines(self, name: str, help_text: str) -> list[str]:
        """Return it in Prometheus' text format: a summary without quantiles, by size."""
        lines = [f"# HELP {name} {help_text}", f"# TYPE {name} summary"]
        for size, count in sorted(self._counts.items()):
            lines += [f'{name}_sum{{size="{size}"}} {self._sums_s[size]:.6f}']
            lines += [f'{name}_count{{size="{size}"}} {count}']
        return lines


class Counters:
    """Answers by status class, the gate's own refusals by code, durations."""

    def __init__(self) -> None:
        self.answers: Counter[int] = Counter({2: 0, 4: 0, 5: 0})
        self.refusals: Counter[str] = Counter(dict.fromkeys(CODES, 0))
        # Requests that nobody waited for any more, by where they were.
        self.abandoned: Counter[str] = Counter({"waiting": 0, "computing": 0})
        # From a request's first byte to its answer with 2xx, and its time in the gate's queue.
        self.requests = Histogram()
        self.waits = Histogram()
        self.batches = Batches()

    def text(self) -> bytes:
        """Return them in Prometheus' text format."""
        answers = {f"{status}xx": count for status, count in self.answers.items()}
        lines = _labelled(
            "counter", "vla_gate_answers_total", "Answers that left the gate.", "status", answers
        )
        said = "Requests that the gate answered itself."
        lines += _labelled("counter", "vla_gate_refusals_total", said, "code", self.refusals)
        said = "Requests that nobody waited for any more, by where they were."
        lines += _labelled("counter", "vla_gate_abandoned_total", said, "place", self.abandoned)
        lines += self.requests.lines("vla_gate_request_seconds", "From the first byte to an answer with 2xx.")
        lines += self.waits.lines("vla_gate_wait_seconds", "In the gate's queue, before TorchServe.")
        said = "From handing a batch on to TorchServe until its answer, by its requests."
        lines += self.batches.lines("vla_gate_batch_seconds", said)
        return "\n".join([*lines, ""]).encode()


def gauge(name: str, help_text: str, value: int) -> bytes:
    """Return a gauge in Prometheus' text format."""
    return f"# HELP {name} {help_text}\n# TYPE {name} gauge\n{name} {value}\n".encode()


def gauges(name: str, help_text: str, label: str, values: Mapping[str, int]) -> bytes:
    """Return a gauge with one value of its label each in Prometheus' text format."""
    return "\n".join([*_labelled("gauge", name, help_text, label, values), ""]).encode()


def _labelled(kind: str, name: str, help_text: str, label: str, values: Mapping[str, int]) -> list[str]:
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
    return lines + [f'{name}{{{label}="{key}"}} {value}' for key, value in sorted(values.items())]
