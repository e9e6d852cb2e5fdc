"""What is decoded beside the batches: once, asked for until it is there, and never too much of it."""

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_budget import NOISE, PICTURES, SMOOTH, small

from vla_runtime.apart import MOST, NICE, Apart
from vla_runtime.errors import BadImage, Forgotten, Later, Overloaded, RequestError
from vla_runtime.images import Limits
from vla_runtime.policy import Answer
from vla_runtime.staging import Inputs


def made(deadline_s: float) -> Inputs:
    nothing = np.zeros(0, np.float32)
    return Inputs({}, nothing, nothing, nothing, nothing, deadline_s)


def until_there(ask: Callable[[], Inputs | RequestError]) -> Inputs | RequestError:
    for _ in range(500):
        try:
            return ask()
        except Later:
            threading.Event().wait(0.01)
    raise AssertionError("it never came")


def test_it_is_made_once_and_fetched_once_by_a_thread_that_yields() -> None:
    go, priorities = threading.Event(), list[int]()

    def prepare() -> Inputs:
        go.wait(5)
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return made(1)

    beside, priority = Apart(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    for _ in range(3):
        with pytest.raises(Later):
            beside.inputs(7, 5, prepare)
    go.set()
    found = until_there(lambda: beside.inputs(7, 5, prepare))
    assert isinstance(found, Inputs)
    assert (found.deadline_s, priorities) == (1, [NICE])
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == priority
    until_there(lambda: beside.inputs(7, 5, prepare))
    assert len(priorities) == 2  # it was fetched: this was another request


def test_its_own_error_comes_back() -> None:
    beside = Apart()
    found = until_there(lambda: beside.inputs(1, 5, lambda: BadImage("image", "no")))
    assert isinstance(found, BadImage)


def test_what_is_not_known_is_forgotten() -> None:
    beside = Apart()
    with pytest.raises(Forgotten):
        beside.fetched(1)
    found = until_there(lambda: beside.inputs(1, 5, lambda: made(1)))
    assert isinstance(found, Inputs)
    with pytest.raises(Forgotten):  # it was fetched
        beside.fetched(1)


def test_it_says_what_is_left_of_it_and_of_those_before_it() -> None:
    go, beside = [threading.Event(), threading.Event()], Apart()

    def prepare(place: int) -> Inputs:
        go[place].wait(5)
        return made(place)

    def left_ms(ticket: int) -> float:
        with pytest.raises(Later) as caught:
            beside.inputs(ticket, (30, 40)[ticket], partial(prepare, ticket))
        return caught.value.left_ms

    assert [left_ms(0), left_ms(1), left_ms(0)] == [30, 70, 30]
    go[0].set()
    assert isinstance(until_there(lambda: beside.fetched(0)), Inputs)
    assert left_ms(1) == 40
    go[1].set()
    assert isinstance(until_there(lambda: beside.fetched(1)), Inputs)


def test_too_many_at_once_are_refused() -> None:
    go, beside, begun = threading.Event(), Apart(), list[int]()

    def prepare() -> Inputs:
        begun.append(1)
        go.wait(5)
        return made(1)

    assert MOST == 8  # as docs/contract.md says
    for ticket in range(1, MOST + 1):
        with pytest.raises(Later):
            beside.inputs(ticket, 5, prepare)
    with pytest.raises(Overloaded, match=r"^large pictures of others come first: send smaller ones, or try"):
        beside.inputs(MOST + 1, 5, prepare)
    with pytest.raises(Later):  # those that were taken stay so
        beside.inputs(MOST, 5, prepare)
    threading.Event().wait(0.05)
    assert len(begun) == 1  # one after the other
    go.set()
    for ticket in range(1, MOST + 1):
        assert isinstance(until_there(lambda ticket=ticket: beside.inputs(ticket, 5, prepare)), Inputs)


def test_what_nobody_comes_for_is_forgotten() -> None:
    beside, done = Apart(), list[int]()

    def take(ticket: int) -> None:
        go = threading.Event()

        def prepare() -> Inputs:
            go.wait(5)
            done.append(ticket)
            return made(ticket)

        with pytest.raises(Later):
            beside.inputs(ticket, 5, prepare)
        go.set()
        while ticket not in done:
            threading.Event().wait(0.001)
        threading.Event().wait(0.02)  # for the future to be done as well

    for ticket in range(1, MOST + 2):
        take(ticket)
    kept = until_there(lambda: beside.inputs(2, 5, lambda: made(-1)))
    assert isinstance(kept, Inputs)
    assert kept.deadline_s == 2
    again = until_there(
        lambda: beside.inputs(1, 5, lambda: made(-1))
    )  # the oldest was dropped, and is made anew
    assert isinstance(again, Inputs)
    assert again.deadline_s == -1


def test_a_dear_picture_comes_later_and_is_answered_as_without_a_ticket(tmp_path: Path) -> None:
    policy = small(tmp_path, limits=Limits(apart_decode_ms=10))
    cheap, dear = {"image": PICTURES["JPEG"](SMOOTH)}, {"image": PICTURES["PNG with alpha"](NOISE)}
    (right,) = policy.infer([dear])
    assert isinstance(right, Answer)

    first, other = policy.infer([dear, cheap], tickets=[1, 2])
    assert isinstance(first, Later)
    assert isinstance(other, Answer)
    assert other.batch_size == 1
    again = [policy.infer([dear], tickets=[1])[0]]
    while isinstance(again[-1], Later) and len(again) < 500:
        threading.Event().wait(0.01)
        again += policy.infer([None], tickets=[1])
    later = again[-1]
    assert isinstance(later, Answer)
    np.testing.assert_array_equal(later.chunk.actions, right.chunk.actions)
    assert later.inputs is not None
    assert right.inputs is not None
    for name, picture in right.inputs.tensors.items():
        np.testing.assert_array_equal(later.inputs.tensors[name], picture)
    gone, other = policy.infer([None, cheap], tickets=[1, 2])
    assert isinstance(gone, Forgotten)
    assert isinstance(other, Answer)
