"""Chunks are asked for ahead: every action at its own moment, nothing waited for, failures survived."""

import re
import threading
import time

import numpy as np
import pytest
from policy_server import PICTURE, running_server

from vla_client import ActionChunk, AheadPlayer, Observation, PolicyUnavailable, RemotePolicy, SafetyReport

WAIT_S = 10.0


class Scripted:
    """A policy whose chunk for the observation of step s holds s, s + 1, ...: the step each action is for."""

    def __init__(self, length=8, refused=()):
        self.length, self.refused = length, refused
        self.seen = []
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, observation):
        self.seen.append(int(observation.state[0]))
        assert self.gate.wait(WAIT_S)
        if len(self.seen) in self.refused:
            raise PolicyUnavailable("away")
        steps = np.arange(self.seen[-1], self.seen[-1] + self.length, dtype=np.float32)
        return ActionChunk(steps[:, None], ("a",), 10.0, None, SafetyReport("ok"), {}, "scripted", "1", "r")


class Robot:
    """Counts its steps and observes them."""

    def __init__(self, player):
        self.player, self.steps = player, 0

    def step(self):
        action = self.player.action(lambda: Observation(PICTURE, "go", [self.steps]))
        self.steps += 1
        return float(action[0])

    def settled_step(self):
        """Step, then let the answer that was asked for arrive."""
        action = self.step()
        asked = self.player._asked
        if asked:
            asked.exception(WAIT_S)
        return action


def test_every_action_is_executed_at_its_own_step():
    policy = Scripted()
    with AheadPlayer(policy, replan=4, lead=2) as player:
        robot = Robot(player)
        assert [robot.settled_step() for _ in range(20)] == list(range(20))
    # Observed at the start, then 2 steps before each change, which comes every 4 steps.
    assert policy.seen == [0, 2, 6, 10, 14, 18]
    assert player.waits == 0


def test_a_late_answer_is_bridged_by_the_rest_of_the_chunk():
    policy = Scripted(length=8)
    with AheadPlayer(policy, replan=4, lead=2) as player:
        robot = Robot(player)
        first = [robot.step() for _ in range(2)]
        policy.gate.clear()
        late = [robot.step() for _ in range(5)]  # the answer asked for at step 2 is still away at step 7
        policy.gate.set()
        assert player._asked
        player._asked.result(WAIT_S)
        after = [robot.step() for _ in range(2)]
    assert first + late + after == list(range(9))
    assert policy.seen[:2] == [0, 2]
    assert player.waits == 0


def test_an_answer_too_late_for_a_whole_turn_is_played_to_its_end():
    policy = Scripted(length=6)
    with AheadPlayer(policy, replan=4, lead=1) as player:
        robot = Robot(player)
        first = [robot.step() for _ in range(3)]
        policy.gate.clear()
        late = [robot.step() for _ in range(3)]
        policy.gate.set()
        # Its actions 3 to 5 are left of the answer, fewer than `replan`.
        after = [robot.settled_step() for _ in range(8)]
    assert first + late + after == list(range(14))
    # At the end of the late answer, at step 9, there is time to ask only then.
    assert policy.seen[:3] == [0, 3, 9]


def test_at_the_chunks_end_the_player_waits_and_counts_it():
    policy = Scripted(length=6)
    with AheadPlayer(policy, replan=4, lead=2) as player:
        robot = Robot(player)
        robot.step()
        policy.gate.clear()
        for _ in range(5):
            robot.step()
        threading.Timer(0.1, policy.gate.set).start()
        begin_s = time.monotonic()
        assert robot.step() == 6  # action 4 of the chunk observed at step 2
        assert time.monotonic() - begin_s > 0.05
    assert player.waits == 1


def test_a_failure_is_asked_again_with_a_fresh_observation():
    policy = Scripted(refused=(2, 3))
    with AheadPlayer(policy, replan=4, lead=2) as player:
        robot = Robot(player)
        assert [robot.settled_step() for _ in range(9)] == list(range(9))
    assert policy.seen[:4] == [0, 2, 4, 5]


def test_a_lasting_failure_reaches_the_robot_when_the_chunk_is_used_up():
    policy = Scripted(length=6, refused=range(2, 100))
    with AheadPlayer(policy, replan=4, lead=2) as player:
        robot = Robot(player)
        assert [robot.settled_step() for _ in range(6)] == list(range(6))
        with pytest.raises(PolicyUnavailable, match=r"^away$"):
            robot.step()


def test_reset_forgets_the_answer_on_its_way():
    policy = Scripted()
    with AheadPlayer(policy, replan=4, lead=2) as player:
        robot = Robot(player)
        for _ in range(3):
            robot.settled_step()
        player.reset()
        robot.steps = 100
        assert robot.step() == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replan": 4, "lead": 0}, "lead must be at least 1 step, got 0"),
        ({"replan": 2, "lead": 2}, "replan must be larger than lead (2), got 2"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        AheadPlayer(Scripted(), **options)


def test_a_chunk_that_is_too_short_is_refused():
    expected = "a chunk of 2 actions is too short for replan 2 and lead 1"
    with (
        running_server() as server,
        RemotePolicy(server.url) as policy,
        AheadPlayer(policy, replan=2) as player,
        pytest.raises(ValueError, match=f"^{expected}$"),
    ):
        player.action(lambda: Observation(PICTURE, "go"))


def test_an_answer_that_is_older_than_its_chunk_is_long_ends_with_its_last_action():
    policy = Scripted(length=20)
    with AheadPlayer(policy, replan=4, lead=1) as player:
        robot = Robot(player)
        for _ in range(3):
            robot.step()
        policy.gate.clear()
        policy.length = 5
        late = [robot.step() for _ in range(10)]  # asked at step 3, still away at step 13
        policy.gate.set()
        assert player._asked
        player._asked.result(WAIT_S)
        assert robot.step() == 3 + 4
    assert late == list(range(3, 13))


def test_a_policy_is_asked_one_request_at_a_time():
    policy = Scripted()
    at_once, most = 0, 0
    lock = threading.Lock()

    class Counted:
        def infer(self, observation):
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            try:
                return policy.infer(observation)
            finally:
                with lock:
                    at_once -= 1

    with AheadPlayer(Counted(), replan=4, lead=2) as player:
        robot = Robot(player)
        for _ in range(2):
            robot.settled_step()
        policy.gate.clear()
        robot.step()
        player.reset()
        threading.Timer(0.1, policy.gate.set).start()
        assert robot.step() == 3
    assert most == 1


def test_reset_forgets_the_history():
    seen = []

    class Keeping(Scripted):
        def infer(self, observation):
            seen.append(np.asarray(observation.state).tolist())
            steps = np.zeros((8, 1), np.float32)
            return ActionChunk(steps, ("a",), 10.0, None, SafetyReport("ok"), {}, "p", "1", "r")

    with AheadPlayer(Keeping(), replan=4, history=2) as player:
        player.action(lambda: Observation(PICTURE, "go", [1]))
        player.reset()
        player.action(lambda: Observation(PICTURE, "go", [2]))
    assert seen == [[[1], [1]], [[2], [2]]]


def test_a_player_that_is_left_asks_no_more():
    with AheadPlayer(Scripted(), replan=4) as player:
        pass
    with pytest.raises(RuntimeError, match="shutdown"):
        player.action(lambda: Observation(PICTURE, "go", [0]))


def test_steps_that_found_their_answer_have_not_waited():
    """Only a step at the chunk's end with no answer there waits; one that is late beforehand does not."""
    policy = Scripted(length=6, refused=(2,))
    with AheadPlayer(policy, replan=4, lead=2) as player:
        robot = Robot(player)
        for _ in range(2):
            robot.step()
        policy.gate.clear()
        robot.step()  # asked at step 2, and refused at last
        for _ in range(3):
            robot.step()
        policy.gate.set()
        assert player._asked
        player._asked.exception(WAIT_S)
        with pytest.raises(PolicyUnavailable):
            robot.step()  # at its end, its answer there: a failure
        assert player.waits == 0
