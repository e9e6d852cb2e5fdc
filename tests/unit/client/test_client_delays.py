"""Players tell a policy that plans for delays what is executed until its answer is there."""

import json
import threading
import time

import numpy as np
import pytest
from policy_server import ANSWER, MSGPACK, PICTURE, running_server
from test_client_ahead import Robot

from vla_client import (
    ActionChunk,
    AheadPlayer,
    InvalidAnswer,
    Observation,
    RealTime,
    RemotePolicy,
    SafetyReport,
)

WAIT_S = 10.0


class Planning:
    """The chunk for the observation of step s holds s, s + 1, ...; it plans for `max_delay` steps."""

    def __init__(self, max_delay: int = 3, control_hz: float = 10.0, length: int = 8) -> None:
        self.max_delay, self.control_hz, self.length = max_delay, control_hz, length
        self.seen: list[Observation] = []
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        assert self.gate.wait(WAIT_S)
        steps = np.arange(self.length, dtype=np.float32) + np.float32(np.asarray(observation.state)[0])
        return ActionChunk(
            steps[:, None], ("a",), self.control_hz, None, SafetyReport("ok"), {}, "p", "1", "r",
            delay=observation.delay or 0, max_delay=self.max_delay,
        )  # fmt: skip

    def told(self) -> list[tuple[list[float] | None, int | None]]:
        """Return `previous`, its only column, and `delay` of each request."""
        return [
            (None if each.previous is None else np.asarray(each.previous)[:, 0].tolist(), each.delay)
            for each in self.seen
        ]


def look(step: float, command: str = "go") -> Observation:
    return Observation(PICTURE, command, [step])


def test_a_player_ahead_says_what_it_executes_until_it_takes_over() -> None:
    policy = Planning()
    with AheadPlayer(policy, replan=4, lead=2) as player:
        robot = Robot(player)
        assert [robot.settled_step() for _ in range(8)] == list(range(8))

    assert policy.told() == [(None, None), ([2, 3, 4, 5, 6, 7], 2), ([6, 7, 8, 9], 2)]


def test_a_player_ahead_expects_what_it_has_measured() -> None:
    policy = Planning(max_delay=3, length=12)
    with AheadPlayer(policy, replan=4, lead=1) as player:
        robot = Robot(player)
        first = [robot.settled_step() for _ in range(3)]
        policy.gate.clear()
        late = [robot.step() for _ in range(3)]  # the answer asked for at step 3 is still away at step 6
        policy.gate.set()
        after = [robot.settled_step() for _ in range(5)]
        assert first + late + after == list(range(11))

    # 3 or 4 steps were measured, as the answer was there at step 6 or not; the policy plans for 3 at most.
    assert [delay for _, delay in policy.told()] == [None, 1, 3]


def test_a_policy_that_does_not_plan_is_told_nothing() -> None:
    policy = Planning(max_delay=0)
    with AheadPlayer(policy, replan=4, lead=2) as player:
        robot = Robot(player)
        for _ in range(8):
            robot.settled_step()

    assert policy.told() == [(None, None)] * 3


def test_what_an_observation_says_itself_stays() -> None:
    policy = Planning()
    with AheadPlayer(policy, replan=2, lead=1) as player:
        for _ in range(2):
            player.action(lambda: Observation(PICTURE, "go", [0], delay=0))

    assert policy.told() == [(None, 0), (None, 0)]


def until(condition) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.002)


def test_the_loop_says_what_it_executes_until_the_answer_comes() -> None:
    policy = Planning(control_hz=2.0)
    with RealTime(policy, control_hz=2.0, max_age_s=WAIT_S) as robot:
        robot.observe(look(0))
        until(lambda: robot.counts.answered == 1)
        time.sleep(0.5)  # one step of the first chunk
        robot.observe(look(1))
        until(lambda: robot.counts.answered == 2)
        robot.observe(look(2, "stop"))
        until(lambda: robot.counts.answered == 3)

    first, second, third = policy.told()
    assert first == third == (None, None)
    rest, delay = second
    assert rest is not None
    assert rest == list(range(8 - len(rest), 8))
    assert rest[0] >= 1
    assert delay is not None
    assert 1 <= delay <= 3


@pytest.mark.parametrize("body", ["multipart", "msgpack"])
def test_both_bodies_carry_it_and_the_answer_is_read(body) -> None:
    previous = np.array([[0.25, 1, 0], [0.5, 0, 1]], np.float32)
    with running_server() as server, RemotePolicy(server.url, body=body, timeout_s=WAIT_S) as policy:
        server.answer = json.dumps(ANSWER | {"delay": 2, "max_delay": 4})
        chunk = policy.infer(Observation(PICTURE, "go", [0], previous=previous, delay=2))
        server.answer = json.dumps(ANSWER)
        plain = policy.infer(Observation(PICTURE, "go", [0]))
    (_, headers, sent), (_, _, other) = server.requests

    assert (chunk.delay, chunk.max_delay, plain.delay, plain.max_delay) == (2, 4, 0, 0)
    packed = headers["content-type"] == MSGPACK
    assert packed == (body == "msgpack")
    told = [sent[name] if packed else json.loads(sent[name][1]) for name in ("previous", "delay")]
    assert told == [previous.tolist(), 2]
    assert not {"previous", "delay"} & set(other)


@pytest.mark.parametrize("wrong", [{"delay": -1}, {"max_delay": 1.5}, {"delay": True}])
def test_an_answer_with_no_delay_of_steps_is_none(wrong) -> None:
    with pytest.raises(InvalidAnswer, match="delay must be an integer from 0"):
        ActionChunk.from_answer(ANSWER | wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"previous": [[float("nan")]]}, "previous must be a list of finite numbers"),
        ({"previous": 1.0}, "previous must be a list of finite numbers"),
        ({"delay": -1}, "delay must be 0 steps or more, got -1"),
    ],
)
def test_an_observation_that_can_not_be_is_refused(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        Observation(PICTURE, "go", [0], **fields)
