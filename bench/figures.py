"""What is measured of one archive, alone and served."""

from dataclasses import dataclass
from statistics import median

from bench.alone import Alone, Described, Split
from bench.load import Answers, Latency
from bench.served import Load
from loadtest.body import Body


@dataclass(frozen=True)
class Lone:
    """One client, one request after another."""

    kind: str
    body: Body
    # Mean size of a request's picture [KB].
    kilobytes: float
    load: Load
    # Artifact + preprocessing of the same pictures in-process.
    alone: Latency
    split: Split
    # Time of the client to encode such a picture as JPEG [ms].
    encode_ms: float

    @property
    def overhead_ms(self) -> float:
        """What serving adds to the median."""
        return self.load.answers.latency.p50_ms - self.alone.p50_ms


@dataclass(frozen=True)
class Round:
    """In-process and served throughput, one right after the other [requests/s]."""

    alone_hz: float
    served: Load
    # The same with no command seen before.
    uncached: Load

    @property
    def served_share(self) -> float:
        """Served over in-process."""
        return self.served.answers.rate_hz / self.alone_hz

    @property
    def cached_gain(self) -> float:
        """Repeated commands over commands never seen before."""
        return self.served.answers.rate_hz / self.uncached.answers.rate_hz


@dataclass(frozen=True)
class Ceilings:
    """What is possible without a policy [requests/s]."""

    # The load generator against an endpoint that does nothing.
    generator: Answers
    # TorchServe with a handler that does nothing, by kind of body.
    front_end: dict[str, Load]


@dataclass(frozen=True)
class Results:
    """All that was measured of one archive."""

    policy: Described
    alone: Alone
    lone: list[Lone]
    # Closed loop: clients -> load, pictures of the policy's own size.
    closed: dict[int, Load]
    # Saturated throughput with larger pictures: kind -> load.
    saturated: dict[str, Load]
    rounds: list[Round]
    # Open loop: requested rate [1/s] -> load.
    open: dict[float, Load]
    peak_mib: dict[str, float]

    @property
    def served_share(self) -> float:
        """Median of the rounds' served over in-process throughput."""
        return median(one.served_share for one in self.rounds)

    @property
    def cached_gain(self) -> float:
        """Median of the rounds' gain by cached commands."""
        return median(one.cached_gain for one in self.rounds)

    @property
    def dip(self) -> float:
        """The most by which more clients give less throughput than the peak at fewer, as a share of it."""
        rates = [load.answers.rate_hz for load in self.closed.values()]
        peaks = [max(rates[: index + 1]) for index in range(len(rates))]
        return max(1 - rate / peak for rate, peak in zip(rates, peaks, strict=True))
