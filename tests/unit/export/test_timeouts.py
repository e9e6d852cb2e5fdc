"""How long a worker may take: as long as its policy needs."""

from export.archive import Timeouts


def test_a_fast_policy_has_the_usual_time_whatever_the_clock_said() -> None:
    found = {Timeouts.of(None, (1, 2, 32), {1: 0.01, 32: took}, 20_000_000) for took in (0.1, 0.3)}

    assert found == {Timeouts(5, 300)}


def test_a_slow_one_has_four_times_what_its_largest_batch_took() -> None:
    found = Timeouts.of(None, (1, 2), {1: 8.0, 2: 15.0}, 20_000_000)

    assert found.response_s == 60
    # Four batches of one and of two observations, and those may be four times as slow.
    assert found.startup_s == 300 + 4 * 4 * (7.5 + 15)


def test_a_large_file_has_time_to_be_unpacked() -> None:
    assert Timeouts.of(None, (1,), {1: 0.1}, 6_500_000_000) == Timeouts(5, 300 + 130)


def test_what_the_user_says_goes_first() -> None:
    assert Timeouts.of(7, (1,), {1: 8.0}, 1).response_s == 7
