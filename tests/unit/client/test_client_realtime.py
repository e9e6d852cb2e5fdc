"""The real-time loop: newest observation and command win, stale answers are dropped, ticks are regular."""

import json
import logging
import threading
import time

import numpy as np
import pytest
from policy_server import ANSWER, PICTURE, running_server

from vla_client import (
    ActionChunk,
    Observation,
    PolicyUnavailable,
    RealTime,
    RemotePolicy,
    RequestRefused,
    SafetyReport,
)

WAIT_S = 10.0


class Gated:
    """A policy that answers when it is let: 4 actions that all name the observation (state[0])."""

    def __init__(self, control_hz=10.0):
        self.control_hz = control_hz
        self.seen = []
        self.answers = threading.Semaphore(0)
        self.fail = False

    def infer(self, observation):
        self.seen.append((observation.command, float(observation.state[0])))
        assert self.answers.acquire(timeout=WAIT_S)
        if self.fail:
            raise PolicyUnavailable("away")
        actions = np.full((4, 1), observation.state[0], np.float32)
        report = SafetyReport("ok")
        return ActionChunk(actions, ("a",), self.control_hz, None, report, {}, "gated", "1", "r")


def look(number, command="go"):
    return Observation(PICTURE, command, [number])


def until(condition):
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.002)


@pytest.fixture
def policy():
    return Gated()


@pytest.fixture
def robot(policy):
    with RealTime(policy, control_hz=10.0, max_age_s=5.0) as running:
        yield running
        for _ in range(10):
            policy.answers.release()  # so that the request on its way ends


def test_the_newest_observation_wins(policy, robot):
    robot.observe(look(0))
    until(lambda: len(policy.seen) == 1)
    for number in range(1, 6):
        robot.observe(look(number))
    policy.answers.release()
    until(lambda: len(policy.seen) == 2)
    assert policy.seen == [("go", 0), ("go", 5)]
    assert (robot.counts.observed, robot.counts.replaced, robot.counts.answered) == (6, 4, 1)


def test_there_is_no_action_before_the_first_answer_and_after_the_last_step(policy, robot):
    assert robot.action() is None
    robot.observe(look(3))
    policy.answers.release()
    until(lambda: robot.counts.answered == 1)
    assert robot.action().tolist() == [3]
    time.sleep(0.45)  # 4 actions at 10 Hz
    assert robot.action() is None


def test_a_new_command_drops_the_chunk_and_the_answer_on_its_way(policy, robot):
    robot.observe(look(1, "lift"))
    policy.answers.release()
    until(lambda: robot.counts.answered == 1)
    robot.observe(look(2, "lift"))
    until(lambda: len(policy.seen) == 2)
    robot.observe(look(3, "stop"))
    assert robot.action() is None  # at once, not when the answer comes
    policy.answers.release()
    until(lambda: robot.counts.outdated == 1)
    assert robot.action() is None
    policy.answers.release()
    until(lambda: robot.counts.answered == 2)
    assert robot.action().tolist() == [3]


def test_a_late_answer_is_dropped(policy):
    with RealTime(policy, max_age_s=0.05) as robot:
        robot.observe(look(1))
        until(lambda: len(policy.seen) == 1)
        time.sleep(0.06)
        policy.answers.release()
        until(lambda: robot.counts.late == 1)
        assert robot.action() is None
        assert robot.counts.answered == 0


def test_a_failed_request_is_counted_and_the_next_observation_is_asked(policy, robot):
    policy.fail = True
    robot.observe(look(1))
    policy.answers.release()
    until(lambda: robot.counts.failed == 1)
    policy.fail = False
    robot.observe(look(2))
    policy.answers.release()
    until(lambda: robot.counts.answered == 1)
    assert robot.action().tolist() == [2]


def test_what_holds_the_robot_is_said_once_and_ends_with_an_answer(policy, robot, caplog):
    caplog.set_level(logging.INFO, "vla_client")
    policy.fail = True
    for number in (1, 2, 3):
        robot.observe(look(number))
        policy.answers.release()
        until(lambda: robot.counts.failed == number)  # noqa: B023
    assert robot.action() is None
    assert str(robot.failure) == "away"
    assert [record.message for record in caplog.records] == ["no chunk: away"]
    policy.fail = False
    robot.observe(look(4))
    policy.answers.release()
    until(lambda: robot.counts.answered == 1)
    assert robot.failure is None
    assert [record.message for record in caplog.records] == ["no chunk: away", "the policy answers again"]


def test_what_no_retry_can_mend_is_raised_until_an_observation_is_answered():
    refusal = {"error": {"code": "missing_field", "field": "state", "message": "needs 4 numbers"}}
    with running_server() as server:
        server.status, server.answer = 400, json.dumps(refusal)
        with RemotePolicy(server.url, timeout_s=5.0) as policy, RealTime(policy, max_age_s=5.0) as robot:
            robot.observe(Observation(PICTURE, "go"))
            until(lambda: robot.counts.failed == 1)
            with pytest.raises(RequestRefused, match=r"^400 missing_field, field 'state': needs 4 numbers$"):
                robot.run(lambda action: None, ticks=3)
            server.status, server.answer = 200, json.dumps(ANSWER)
            robot.observe(Observation(PICTURE, "go", [1, 2, 3, 4]))
            until(lambda: robot.counts.answered == 1)
            assert robot.action() is not None


def test_the_policy_is_asked_once_a_tick_however_many_frames_come():
    with running_server() as server, RemotePolicy(server.url, timeout_s=5.0) as policy:
        with RealTime(policy, control_hz=10.0, max_age_s=5.0) as robot:
            end_s = time.monotonic() + 0.55
            while time.monotonic() < end_s:
                robot.observe(look(1))
                time.sleep(0.005)
        assert 3 <= len(server.requests) <= 6
    assert robot.counts.observed > 50


def test_a_history_is_what_was_given_oldest_first(policy):
    with RealTime(policy, control_hz=50.0, max_age_s=5.0, history=2) as robot:
        asked = []
        policy.infer = lambda observation: asked.append(observation) or 1 / 0
        robot.observe(look(1))
        until(lambda: asked)
    assert asked[0].state.tolist() == [[1], [1]]
    assert len(asked[0].image) == 2


def test_a_chunk_of_another_rate_is_an_error():
    policy = Gated(control_hz=20.0)
    with RealTime(policy, control_hz=10.0) as robot:
        robot.observe(look(1))
        policy.answers.release()
        with pytest.raises(ValueError, match=r"^the chunk is meant for 20 Hz, the loop runs at 10 Hz$"):
            until(lambda: robot.action() is not None)


class Clock:
    """A clock that moves only in `sleep`, which oversleeps by the given times in turn [s]."""

    def __init__(self, late_s):
        self.now_s, self.late_s = 1000.0, list(late_s)

    def monotonic(self):
        return self.now_s

    def sleep(self, seconds):
        assert seconds > 0
        self.now_s += seconds + self.late_s.pop(0)


def test_lateness_is_measured_and_does_not_add_up(policy, monkeypatch):
    clock = Clock([0.004, 0.001, 0.003])
    monkeypatch.setattr("vla_client.realtime.time", clock)
    times_s = []
    run = RealTime(policy, control_hz=50.0).run(lambda action: times_s.append(clock.now_s - 1000), ticks=4)
    assert times_s == pytest.approx([0, 0.024, 0.041, 0.063])
    assert (run.ticks, run.held, run.skipped) == (4, 4, 0)
    assert (run.jitter_mean_ms, run.jitter_max_ms) == pytest.approx((2.0, 4.0))
    assert run.jitter_p95_ms == pytest.approx(np.percentile([0, 4, 1, 3], 95))


def test_a_slow_robot_leaves_ticks_out(policy, monkeypatch):
    clock = Clock([0.0] * 3)
    monkeypatch.setattr("vla_client.realtime.time", clock)
    times_s = []

    def slow(_action):
        times_s.append(clock.now_s - 1000)
        clock.now_s += 0.055  # two periods and three quarters

    run = RealTime(policy, control_hz=50.0).run(slow, ticks=3)
    # Due at 0, 0.02, 0.04 ...: the last one that is due is made up for, those before are left out.
    assert times_s == pytest.approx([0, 0.055, 0.11])
    assert run.skipped == 1 + 2 + 2


def test_real_ticks_take_their_time(policy):
    begin_s = time.monotonic()
    with RealTime(policy, control_hz=50.0) as robot:
        run = robot.run(lambda action: None, ticks=11)
    assert time.monotonic() - begin_s >= (10 + run.skipped) / 50


def test_a_served_policy_moves_the_robot():
    answer = {**ANSWER, "control_hz": 20.0, "actions": [[float(step), 0, 0] for step in range(40)]}
    with running_server() as server:
        server.answer = json.dumps(answer)
        moves = []
        with (
            RemotePolicy(server.url, timeout_s=5.0) as policy,
            RealTime(policy, control_hz=20.0, max_age_s=5.0) as robot,
        ):
            robot.observe(Observation(PICTURE, "go"))
            until(lambda: robot.counts.answered == 1)
            run = robot.run(moves.append, ticks=8)
    steps = [int(action[0]) for action in moves]
    assert run.held == 0
    assert steps == sorted(steps)
    assert steps[-1] - steps[0] >= 6  # the actions advance with time
    assert len(server.requests) == 1


@pytest.mark.parametrize("options", [{"control_hz": 0.0}, {"max_age_s": -1.0}])
def test_wrong_options_are_refused(policy, options):
    with pytest.raises(ValueError, match=r"^control_hz and max_age_s must be positive, got "):
        RealTime(policy, **options)
