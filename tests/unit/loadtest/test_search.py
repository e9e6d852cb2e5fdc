"""The capacity search, with hosts whose limit is known."""

from collections.abc import Callable

import pytest

from loadtest.samples import Sample
from loadtest.search import Trial, find, interval_ms, step_of


def host(limit: int) -> tuple[Callable[[int], Trial], list[int]]:
    """A host that carries exactly `limit` robots, and the list of what was tried on it."""
    tried: list[int] = []

    def trial(robots: int) -> Trial:
        tried.append(robots)
        missed = [] if robots <= limit else ["latency p95"]
        return Trial(
            robots, "missed" if missed else "kept", missed, 10.0 + robots, (9.0 + robots, 11.0 + robots)
        )

    return trial, tried


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 7, 8, 13, 20])
@pytest.mark.parametrize("start", [1, 4, 32])
def test_small_limits_are_found_exactly(limit: int, start: int) -> None:
    trial, _ = host(limit)

    capacity = find(trial, start, 4096)

    assert (capacity.robots, capacity.bounded) == (limit, True)


@pytest.mark.parametrize("limit", [47, 100, 333, 1000])
def test_large_limits_are_found_within_a_step(limit: int) -> None:
    trial, tried = host(limit)

    capacity = find(trial, 4, 4096)

    assert limit - step_of(limit) <= capacity.robots <= limit
    assert len(tried) < 24


def test_every_end_of_the_bracket_is_confirmed() -> None:
    trial, tried = host(6)

    capacity = find(trial, 4, 100)

    assert tried == [4, 8, 6, 7, 6, 7]
    assert capacity.statement == (
        "6 robots: kept in 2 of 2 runs (latency 15.0 to 17.0 ms with 95% confidence); "
        "7 robots: kept in 0 of 2 runs, missed latency p95 (latency 16.0 to 18.0 ms with 95% confidence)"
    )


def test_unlucky_run_does_not_decide() -> None:
    trial, _ = host(10)
    unlucky = iter([True])

    def once_unlucky(robots: int) -> Trial:
        if robots == 10 and next(unlucky, False):
            return Trial(10, "missed", ["deadline misses"], 60.0, None)
        return trial(robots)

    capacity = find(once_unlucky, 5, 100)

    assert capacity.robots == 10
    assert "10 robots: kept in 2 of 3 runs, missed deadline misses" in capacity.statement


def test_lucky_run_does_not_decide() -> None:
    trial, _ = host(10)
    lucky = iter([True])

    def once_lucky(robots: int) -> Trial:
        if robots == 12 and next(lucky, False):
            return Trial(12, "kept", [], 49.0, None)
        return trial(robots)

    assert find(once_lucky, 6, 100).robots == 10


def test_not_one_robot() -> None:
    trial, tried = host(0)

    capacity = find(trial, 4, 100)

    assert (capacity.robots, tried) == (0, [4, 2, 1, 1])
    assert capacity.statement.startswith("not one robot is carried: kept in 0 of 2 runs, missed latency p95")


def test_limit_of_the_search_is_told() -> None:
    trial, tried = host(1000)

    capacity = find(trial, 4, 10)

    assert (capacity.robots, capacity.bounded, max(tried)) == (10, False, 10)
    assert capacity.statement.endswith("; more were not tried")


def test_run_that_can_not_be_judged_is_not_kept_and_is_told() -> None:
    trial, _ = host(100)

    def weak_generator(robots: int) -> Trial:
        return trial(robots) if robots <= 5 else Trial(robots, "not judged", [], 20.0, None, ["busy"])

    capacity = find(weak_generator, 4, 100)

    assert capacity.robots == 5
    assert capacity.statement.endswith("6 robots: kept in 0 of 2 runs, 2 could not be judged (busy)")


def test_interval_holds_the_percentile_and_is_as_wide_as_the_seconds_differ() -> None:
    steady = [Sample("robot", i / 10, 0, 20.0 + i % 10, "ok") for i in range(200)]
    uneven = [Sample("robot", i / 10, 0, 20.0 + 10 * (i // 100) + i % 10, "ok") for i in range(200)]

    assert interval_ms(steady, 95) == (29.0, 29.0)
    assert interval_ms(uneven, 50) == (27.0, 32.0)
