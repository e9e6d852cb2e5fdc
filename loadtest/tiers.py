"""Latency tiers: what a host promises its robots, read from YAML and checked."""

from pathlib import Path
from typing import Literal

import msgspec
import yaml

FILE = Path(__file__).with_name("tiers.yaml")

# How requests arrive; see `locustfile.py`.
Scenario = Literal["robots", "mixed", "burst", "eager"]


class TierError(ValueError):
    """A tier or its file is wrong; the message names the place."""


class Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is promised to the robots of one host."""

    # For whom the tier is.
    use: str
    robots: int
    # Rate at which each robot asks [Hz].
    control_hz: float
    # Time in which the robots start [s].
    ramp_s: float
    # Time that all robots have run before anything counts [s].
    warm_up_s: float
    # Time that is measured [s].
    duration_s: float
    # Percentile -> bound [ms], for instance {"p95": 50}: latency seen by the client stays under it.
    latency_ms: dict[str, float]
    # Largest share of requests without a right answer, from 0 to 1.
    max_failures: float
    # An answer older than this is worthless [ms]; the server is told, and drops what it can't make in time.
    deadline_ms: float
    # Largest share of control steps without an answer inside the deadline, from 0 to 1.
    max_deadline_misses: float
    # Largest accelerator memory in use [GiB]; of the workers' resident memory where there is no accelerator.
    memory_gib: float
    scenario: Scenario = "robots"
    # Clients that send one bad request a second each.
    adversaries: int = 0

    def __post_init__(self) -> None:
        for name in ("robots", "control_hz", "duration_s", "deadline_ms", "memory_gib"):
            _require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("ramp_s", "warm_up_s", "adversaries"):
            _require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("max_failures", "max_deadline_misses"):
            _require(
                0 <= getattr(self, name) <= 1, f"{name} is a share from 0 to 1, got {getattr(self, name)}"
            )
        _require(bool(self.latency_ms), "latency_ms promises no percentile; name one, for instance p95: 50")
        for name, bound in self.latency_ms.items():
            _require(bound > 0, f"latency_ms.{name} must be above 0, got {bound}")
        _ = self.percentiles

    @property
    def percentiles(self) -> dict[float, float]:
        """Percentile (0 to 100) -> bound [ms].

        Raises:
            ValueError: a name is not `p` and a number between 0 and 100.
        """
        return {percentile(name): bound for name, bound in self.latency_ms.items()}


def percentile(name: str) -> float:
    """Return 99.9 for `p99.9`.

    Raises:
        ValueError: it is not of that form.
    """
    try:
        value = float(name.removeprefix("p")) if name.startswith("p") else 0.0
    except ValueError:
        value = 0.0
    _require(0 < value < 100, f"a percentile is named p50, p95 or p99.9, got {name!r}")
    return value


def load(path: Path = FILE) -> dict[str, Tier]:
    """Read a file of tiers by name.

    Raises:
        TierError: the file can't be read, or a tier has an unknown, missing or impossible value.
    """
    try:
        return msgspec.convert(yaml.safe_load(path.read_text()), dict[str, Tier])
    except (OSError, yaml.YAMLError) as error:
        raise TierError(f"{path} can't be read as YAML: {error}") from error
    except msgspec.ValidationError as error:
        raise TierError(f"{path}: {error}") from error


def select(name: str, path: Path = FILE) -> Tier:
    """Return one tier of a file.

    Raises:
        TierError: as `load`, or the file has no such tier; names those that it has.
    """
    tiers = load(path)
    if name not in tiers:
        raise TierError(f"{path} has no tier {name!r}; it has: {', '.join(tiers)}")
    return tiers[name]


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion does
    if not condition:
        raise ValueError(message)
