"""Tiers: the shipped ones, one's own, and what is refused."""

from pathlib import Path

import pytest

from loadtest import tiers
from loadtest.tiers import TierError

OWN = """
mine:
  use: a bench of arms
  robots: 3
  control_hz: 20
  ramp_s: 0
  warm_up_s: 1
  duration_s: 10
  latency_ms: {p50: 10, p99.9: 40}
  max_failures: 0
  deadline_ms: 50
  max_deadline_misses: 0.05
  memory_gib: 1.5
"""


def test_shipped_tiers_promise_what_the_design_says() -> None:
    shipped = tiers.load()

    assert {name: (tier.use, tier.memory_gib, tier.percentiles[95]) for name, tier in shipped.items()} == {
        "small": ("embedded robots", 4, 50),
        "medium": ("desktop robots", 16, 200),
        "large": ("stationary systems", 32, 1000),
    }


def test_own_tier(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(OWN)

    tier = tiers.select("mine", file)

    assert (tier.robots, tier.percentiles, tier.scenario) == (3, {50.0: 10, 99.9: 40}, "robots")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("robots: 3", "robots: 0", "robots must be above 0, got 0 - at `$[...]`"),
        ("robots: 3", "robots: many", "Expected `int`, got `str` - at `$[...].robots`"),
        ("robots: 3", "machines: 3", "unknown field `machines`"),
        ("  robots: 3\n", "", "missing required field `robots`"),
        ("p50: 10", "median: 10", "a percentile is named p50, p95 or p99.9, got 'median'"),
        ("p50: 10", "p100: 10", "got 'p100'"),
        ("p50: 10", "p50: 0", "latency_ms.p50 must be above 0, got 0.0"),
        ("{p50: 10, p99.9: 40}", "{}", "latency_ms promises no percentile"),
        ("max_failures: 0", "max_failures: 1.5", "max_failures is a share from 0 to 1, got 1.5"),
        ("ramp_s: 0", "ramp_s: -1", "ramp_s must be at least 0, got -1.0"),
        ("use: a bench of arms", "scenario: chaos\n  use: x", "Invalid enum value 'chaos'"),
        ("mine:", "mine: [", "can't be read as YAML"),
    ],
)
def test_wrong_tier_is_refused_by_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(OWN.replace(old, new))

    with pytest.raises(TierError) as error:
        tiers.load(file)

    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_unknown_tier_names_those_that_there_are() -> None:
    with pytest.raises(TierError, match=r"has no tier 'tiny'; it has: small, medium, large"):
        tiers.select("tiny")
