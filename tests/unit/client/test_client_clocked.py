"""The real-time loop by a clock that only the test moves: ages, places and delays to the tick."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from policy_server import PICTURE
from test_client_delays import Planning

from vla_client import (
    ActionChunk,
    Counts,
    InvalidAnswer,
    Observation,
    Overloaded,
    PolicyFailure,
    PolicyUnavailable,
    RealTime,
)

WAIT_S = 10.0
# A period that binary fractions hold exactly.
HZ, PERIOD_S = 8.0, 0.125


class Clock:
    """Stands where it is put [s]."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr("vla_client.realtime.time", stopped)
    return stopped


def look(step: float) -> Observation:
    return Observation(PICTURE, "go", [step])


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.002)


def action_of(robot: RealTime) -> float | None:
    action = robot.action()
    return None if action is None else float(action[0])


def ends(robot: RealTime) -> bool:
    """Whether the loop refuses to go on."""
    try:
        robot.action()
    except ValueError:
        return True
    return False


def test_each_action_belongs_to_its_tick(clock: Clock) -> None:
    policy = Planning(control_hz=HZ, length=4)
    with RealTime(policy, HZ) as robot:
        robot.observe(look(0))
        until(lambda: robot.counts.answered == 1)
        actions = []
        for _ in range(9):
            actions.append(action_of(robot))
            clock.now_s += PERIOD_S / 2

    assert actions == [0, 0, 1, 1, 2, 2, 3, 3, None]
    assert policy.told() == [(None, None)]


def test_an_answer_is_late_beyond_its_age_alone(clock: Clock) -> None:
    policy = Planning(control_hz=HZ)
    with RealTime(policy, HZ, max_age_s=2 * PERIOD_S) as robot:
        for ages, (answered, late) in zip((2, 3), ((1, 0), (1, 1)), strict=True):
            policy.gate.clear()
            robot.observe(look(0))
            until(lambda: robot.counts.observed == len(policy.seen))
            clock.now_s += ages * PERIOD_S
            policy.gate.set()
            until(lambda: robot.counts.answered + robot.counts.late == answered + late)  # noqa: B023
            assert (robot.counts.answered, robot.counts.late) == (answered, late)


def test_the_policy_is_told_the_place_and_the_delay_that_was_measured(clock: Clock) -> None:
    policy = Planning(max_delay=7, control_hz=HZ)
    with RealTime(policy, HZ, max_age_s=WAIT_S) as robot:
        robot.observe(look(0))
        until(lambda: robot.counts.answered == 1)
        clock.now_s += 2 * PERIOD_S
        policy.gate.clear()
        robot.observe(look(2))
        until(lambda: len(policy.seen) == 2)
        clock.now_s += 2.5 * PERIOD_S
        policy.gate.set()
        until(lambda: robot.counts.answered == 2)
        robot.observe(look(4))
        until(lambda: robot.counts.answered == 3)

    # The first answer came at once, within the tick; the second in the third tick after its observation.
    assert policy.told() == [(None, None), ([2, 3, 4, 5, 6, 7], 1), ([4, 5, 6, 7, 8, 9], 3)]


@pytest.mark.parametrize(("factor", "taken"), [(1 + 5e-7, True), (1 - 5e-7, True), (1 + 5e-6, False)])
def test_a_rate_is_equal_to_a_millionth(clock: Clock, factor: float, taken: bool) -> None:  # noqa: FBT001
    del clock
    with RealTime(Planning(control_hz=HZ * factor), HZ) as robot:
        robot.observe(look(0))
        until(lambda: robot.counts.answered == 1 or ends(robot))
        assert (robot.counts.answered == 1) is taken


class Failing:
    """Fails in each of the given ways in turn."""

    def __init__(self, *failures: PolicyFailure) -> None:
        self.failures = list(failures)

    def infer(self, observation: Observation) -> ActionChunk:
        del observation
        raise self.failures.pop(0)


def test_each_kind_of_failure_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vla_client")
    policy = Failing(
        PolicyUnavailable("away"),
        PolicyUnavailable("still away"),
        InvalidAnswer("nonsense"),
        Overloaded(503, "overloaded", None, "busy", request_id="r-1"),
        Overloaded(503, "overloaded", None, "busier", request_id="r-2"),
        Overloaded(429, "overloaded", None, "too many"),
        Overloaded(429, "other", None, "too many"),
        Overloaded(429, "other", "image", "too many"),
    )
    with RealTime(policy, 1000.0) as robot:
        for number in range(1, 9):
            robot.observe(look(0))
            until(lambda: robot.counts.failed == number)  # noqa: B023

    assert [record.getMessage().removeprefix("no chunk: ") for record in caplog.records] == [
        "away",
        "nonsense",
        "503 overloaded: busy [request r-1]",
        "429 overloaded: too many",
        "429 other: too many",
        "429 other, field 'image': too many",
    ]
    assert robot.counts == Counts(observed=8, failed=8)


def test_no_tick_is_no_jitter() -> None:
    run = RealTime(Failing()).run(lambda _: None, 0)

    assert (run.ticks, run.held, run.skipped) == (0, 0, 0)
    assert (run.jitter_mean_ms, run.jitter_p95_ms, run.jitter_max_ms) == (0.0, 0.0, 0.0)


def test_the_95th_percentile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    late_s = [index / 1000 for index in range(1, 41)]

    class Oversleeping(Clock):
        def sleep(self, seconds: float) -> None:
            self.now_s += seconds + late_s.pop(0)

    monkeypatch.setattr("vla_client.realtime.time", Oversleeping())
    run = RealTime(Failing(), HZ).run(lambda _: None, 41)

    assert run.jitter_p95_ms == pytest.approx(38.0)
    assert run.jitter_max_ms == pytest.approx(40.0)


def test_one_tick_that_is_missed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("vla_client.realtime.time", clock)

    def slow(_: object) -> None:
        clock.now_s += 2.25 * PERIOD_S

    run = RealTime(Failing(), HZ).run(slow, 1)

    assert (run.ticks, run.skipped) == (1, 1)


def running_loops() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "realtime"]


def test_a_loop_that_is_left_ends_and_one_that_is_forgotten_keeps_no_program_alive() -> None:
    policy = Planning()
    with RealTime(policy) as robot:
        (thread,) = running_loops()
        assert thread.daemon
        policy.gate.clear()
        robot.observe(look(0))
        until(lambda: len(policy.seen) == 1)
        threading.Timer(0.1, policy.gate.set).start()
    assert running_loops() == []


def test_by_default_an_answer_may_be_half_a_second_old(clock: Clock) -> None:
    policy = Planning(control_hz=10.0)
    with RealTime(policy) as robot:
        for age_s, answered, late in ((0.5, 1, 0), (0.625, 1, 1)):
            policy.gate.clear()
            robot.observe(look(0))
            until(lambda: robot.counts.observed == len(policy.seen))
            clock.now_s += age_s
            policy.gate.set()
            until(lambda: robot.counts.answered + robot.counts.late == answered + late)  # noqa: B023
            assert (robot.counts.answered, robot.counts.late) == (answered, late)
    assert all(isinstance(each.image, np.ndarray) for each in policy.seen)  # no history


@pytest.mark.parametrize("options", [{"control_hz": 10.0, "max_age_s": 0.0}, {"control_hz": -1.0}])
def test_what_is_not_positive_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^control_hz and max_age_s must be positive, got "):
        RealTime(Failing(), **options)


def test_a_slow_loop_is_a_loop() -> None:
    run = RealTime(Failing(), 0.5).run(lambda _: None, 1)

    assert run.held == 1


def test_failures_that_pass_are_not_raised() -> None:
    with RealTime(Failing(PolicyUnavailable("away"), InvalidAnswer("nonsense")), 1000.0) as robot:
        for number in (1, 2):
            robot.observe(look(0))
            until(lambda: robot.counts.failed == number)  # noqa: B023
            assert robot.action() is None
    assert isinstance(robot.failure, InvalidAnswer)
