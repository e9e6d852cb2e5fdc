"""How long an answer is expected to take, and what a history does with cameras and states."""

import numpy as np
import pytest
from policy_server import PICTURE

from vla_client import ActionChunk, ChunkPlayer, History, Observation, SafetyReport
from vla_client.delays import Delays

LOOK = Observation(PICTURE, "go", [0.0])


def chunk(length: int = 12, max_delay: int = 10) -> ActionChunk:
    actions = np.arange(length, dtype=np.float32)[:, None]
    return ActionChunk(
        actions, ("a",), 10.0, None, SafetyReport("ok"), {}, "p", "1", "r", max_delay=max_delay
    )


def delay_of(delays: Delays, made: ActionChunk, place: int = 0) -> int | None:
    return delays.told(LOOK, made, place).delay


def test_the_longest_of_the_last_eight_answers_is_expected() -> None:
    delays = Delays()
    assert delay_of(delays, chunk()) == 1
    delays.measured(5)
    for expected in (5, 5, 5, 5, 5, 5, 5, 3):
        delays.measured(3)
        assert delay_of(delays, chunk()) == expected


def test_never_less_than_the_least_nor_more_than_there_is() -> None:
    delays = Delays(least=4)
    delays.measured(2)
    assert delay_of(delays, chunk()) == 4
    assert delay_of(delays, chunk(max_delay=3)) == 3
    told = delays.told(LOOK, chunk(), 10)  # two actions are left
    assert told.delay == 2
    assert np.asarray(told.previous).tolist() == [[10], [11]]


def test_nothing_is_told_where_nothing_is_executed() -> None:
    delays = Delays()
    assert delays.told(LOOK, None, 0) is LOOK
    assert delays.told(LOOK, chunk(max_delay=0), 0) is LOOK
    assert delays.told(LOOK, chunk(), 12) is LOOK
    assert delay_of(Delays(least=0), chunk()) is None


@pytest.mark.parametrize("said", [{"previous": [1.0]}, {"delay": 0}, {"previous": [[1.0]], "delay": 1}])
def test_what_is_said_already_is_kept(said: dict) -> None:
    observation = Observation(PICTURE, "go", **said)

    assert Delays().told(observation, chunk(), 0) is observation


def test_a_lone_camera_needs_no_name_in_a_history() -> None:
    history = History(2)
    pictures = [np.full((2, 2, 3), number, np.uint8) for number in range(2)]
    history.add(Observation(pictures[0], "go"))

    joined = history.add(Observation(pictures[1], "go"))

    assert [int(np.asarray(image).max()) for image in joined.images.values()] == [0, 1]
    assert list(joined.images) == ["image.0", "image.1"]
    assert joined.state is None


@pytest.mark.parametrize(("image", "field"), [([PICTURE], "image"), ({"top": [PICTURE]}, r"image\.top")])
def test_a_history_is_made_of_single_pictures(image: object, field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be one picture a step, got list$"):
        History(2).add(Observation(image, "go"))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("first", [PICTURE, {"top": PICTURE, "side": PICTURE}, {"side": PICTURE}])
def test_the_cameras_stay_the_same(first: object) -> None:
    history = History(2)
    history.add(Observation(first, "go"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^an observation without the cameras of the newest: top$"):
        history.add(Observation({"top": PICTURE}, "go"))


def test_the_newest_of_several_steps_names_the_cameras() -> None:
    history = History(3)
    for _ in range(2):
        history.add(Observation({"side": PICTURE}, "go"))
    with pytest.raises(ValueError, match=r"^an observation without the cameras of the newest: top$"):
        history.add(Observation({"top": PICTURE}, "go"))


def test_without_a_history_nobody_looks_before_it_is_needed() -> None:
    looks = []
    look = History().watch(lambda: looks.append(1) or LOOK)
    assert looks == []
    assert look() is LOOK


def test_with_a_history_every_step_is_seen_once() -> None:
    looks = []
    look = History(2).watch(lambda: looks.append(1) or LOOK)
    assert looks == [1]
    assert len(look().images) == 2
    assert looks == [1]


class Steps:
    """A policy that plays two actions a chunk, and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def infer(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        return chunk(2)


def test_a_new_episode_forgets_the_history_of_the_last() -> None:
    policy = Steps()
    player = ChunkPlayer(policy, history=2)
    for number in (1.0, 2.0):
        player.action(lambda: Observation(PICTURE, "go", [number]))  # noqa: B023
    player.reset()
    player.action(lambda: Observation(PICTURE, "go", [3.0]))

    assert [np.asarray(each.state).tolist() for each in policy.seen] == [[[1.0], [1.0]], [[3.0], [3.0]]]


def test_a_player_without_a_history_sends_single_pictures() -> None:
    policy = Steps()
    player = ChunkPlayer(policy)
    player.action(lambda: LOOK)

    assert player.chunk is not None
    assert policy.seen == [LOOK]
