"""How long the gate's batches are: whole ones for a client alone, short ones where several ask."""

import pytest

from server.gate.shares import Shares


def test_a_client_alone_has_whole_batches_whatever_they_take() -> None:
    shares = Shares(32)
    shares.asked("a", 0.0)
    shares.learn(32, 10.0)
    assert shares.most(1, 0.5) == 32


@pytest.mark.parametrize(
    ("count", "took_s", "most"),
    [(32, 0.08, 8), (32, 0.02, 32), (4, 0.04, 2), (1, 5.0, 1), (10, 0.03, 6), (4, 0.001, 32)],
)
def test_shared_batches_are_as_long_as_20_ms_allow(count: int, took_s: float, most: int) -> None:
    shares = Shares(32)
    shares.asked("a", 0.0)
    shares.asked("b", 0.1)
    shares.learn(count, took_s)
    assert shares.most(2, 0.5) == max(most, 2)


def test_they_grow_again_by_one_where_they_are_full_and_fast() -> None:
    shares = Shares(6)
    shares.asked("a", 0.0)
    shares.asked("b", 0.0)
    shares.learn(6, 0.04)
    lengths = []
    for count in (2, 3, 4, 4, 5, 6, 6):
        shares.learn(count, 0.01)
        lengths.append(shares.most(0, 0.5))
    assert lengths == [3, 4, 5, 5, 6, 6, 6]


def test_each_client_that_waits_is_in_it() -> None:
    shares = Shares(8)
    for client in range(20):
        shares.asked(str(client), 0.0)
    shares.learn(8, 1.0)
    assert [shares.most(waiting, 0.5) for waiting in (1, 5, 8, 20)] == [1, 5, 8, 8]


def test_a_client_counts_for_a_second() -> None:
    shares = Shares(8)
    shares.asked("a", 0.0)
    shares.asked("b", 0.6)
    shares.learn(8, 1.0)
    assert shares.most(1, 0.99) == 1
    assert shares.most(1, 1.0) == 8
    shares.asked("a", 1.1)
    assert shares.most(1, 1.2) == 1
