"""Loops that end by themselves: two answers running that call the task done, over real HTTP."""

import json
import time
from collections.abc import Iterable, Iterator

import pytest
from policy_server import ANSWER, PICTURE, Server, running_server

from vla_client import ActionChunk, AheadPlayer, ChunkPlayer, Observation, RealTime, RemotePolicy

WAIT_S = 10.0
LIMIT = 40


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


def answers(done: Iterable[object]) -> Iterator[str]:
    """Yield one answer for each value of `done`, four actions long."""
    for value in done:
        actions = [[0.0, 0.0, float(step)] for step in range(4)]
        yield json.dumps({**ANSWER, "control_hz": 50.0, "actions": actions, "extras": {"done": value}})


def observe(command: str = "go") -> Observation:
    return Observation(PICTURE, command)


def steps_until_done(player: ChunkPlayer | AheadPlayer) -> int:
    steps = 0
    while not player.done:
        player.action(observe)
        steps += 1
        assert steps < LIMIT
    return steps


def ask_until_done(policy: RemotePolicy, loop: RealTime) -> list[bool]:
    """Give observations, each when the last is answered; returns whether the loop is done after each."""
    said: list[bool] = []
    while not any(said):
        loop.observe(observe())
        limit_s = time.monotonic() + WAIT_S
        while loop.counts.answered == len(said):
            assert time.monotonic() < limit_s, loop.failure
            time.sleep(0.002)
        said.append(loop.done)
    return said


@pytest.mark.parametrize(
    ("extras", "expected"),
    [
        ({}, None),
        ({"done": 0.25}, 0.25),
        ({"done": 0}, 0.0),
        ({"done": 1}, 1.0),
        ({"done": 1.5}, None),
        ({"done": True}, None),
        ({"done": {"name": "yes", "index": 1}}, None),
    ],
)
def test_an_answer_says_how_sure_it_is(extras: dict, expected: float | None) -> None:
    assert ActionChunk.from_answer(ANSWER | {"extras": extras}).done == expected


def test_a_loop_ends_after_two_answers_running(server: Server) -> None:
    server.answers = answers([0.1, 0.5, 0.49, 0.6, 0.5, 0.0])
    with RemotePolicy(server.url, WAIT_S) as policy:
        assert steps_until_done(ChunkPlayer(policy, replan=1)) == 5
    assert len(server.requests) == 5


def test_an_answer_is_played_as_long_as_it_was_to_be(server: Server) -> None:
    server.answers = answers([0.1, 0.9, 0.9, 0.0])
    with RemotePolicy(server.url, WAIT_S) as policy:
        assert steps_until_done(ChunkPlayer(policy, replan=3)) == 7


def test_a_policy_without_it_is_never_done(server: Server) -> None:
    with RemotePolicy(server.url, WAIT_S) as policy:
        player = ChunkPlayer(policy, replan=1)
        for _ in range(5):
            player.action(observe)
            assert not player.done


def test_a_new_command_and_a_reset_begin_anew(server: Server) -> None:
    server.answers = answers([0.9] * 6)
    with RemotePolicy(server.url, WAIT_S) as policy:
        player = ChunkPlayer(policy, replan=1)
        said = []
        for command in ("lift it", "push it", "push it", "lift it"):
            player.action(lambda command=command: observe(command))
            said.append(player.done)
        assert said == [False, False, True, False]
        player.action(lambda: observe("lift it"))
        assert player.done
        player.reset()
        assert not player.done


def test_a_player_that_asks_ahead_is_done_by_the_chunks_that_took_over(server: Server) -> None:
    server.answers = answers([0.1, 0.9, 0.9, *[0.0] * LIMIT])
    with RemotePolicy(server.url, WAIT_S) as policy, AheadPlayer(policy, replan=2, lead=1) as player:
        steps_until_done(player)
        assert len(server.requests) == 3
        player.reset()
        assert not player.done


def test_the_real_time_loop_is_done_until_another_command_comes(server: Server) -> None:
    server.answers = answers([0.9, 0.2, 0.9, 0.9, 0.0])
    with RemotePolicy(server.url, WAIT_S) as policy, RealTime(policy, 50.0, max_age_s=WAIT_S) as loop:
        assert ask_until_done(policy, loop) == [False, False, False, True]
        loop.observe(observe("something else"))
        assert not loop.done


def test_a_run_ends_when_done_and_holds(server: Server) -> None:
    server.answers = answers([0.9] * LIMIT)
    moves: list[object] = []
    with RemotePolicy(server.url, WAIT_S) as policy, RealTime(policy, 50.0, max_age_s=WAIT_S) as loop:

        def execute(action: object) -> None:
            moves.append(action)
            loop.observe(observe())

        ask_until_done(policy, loop)  # what was answered before the run does not end it
        run = loop.run(execute, ticks=500, until_done=True)
        assert loop.counts.answered >= 4
    assert 2 <= run.ticks == len(moves) < 500
    assert moves[-1] is None


def test_a_run_goes_on_where_it_is_not_told_to_end(server: Server) -> None:
    server.answers = answers([0.9] * LIMIT)
    with RemotePolicy(server.url, WAIT_S) as policy, RealTime(policy, 50.0, max_age_s=WAIT_S) as loop:
        ask_until_done(policy, loop)
        run = loop.run(lambda _: loop.observe(observe()), ticks=8)
    assert run.ticks == 8
