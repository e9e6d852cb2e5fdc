"""The last observations of a robot as one."""

import json

import numpy as np
import pytest
from policy_server import ANSWER, PICTURE, running_server

from vla_client import ChunkPlayer, History, Observation, RemotePolicy


def look(number, **cameras):
    pictures = cameras or {"front": PICTURE}
    return Observation(pictures, f"step {number}", [number, -number])


def test_the_last_are_kept_the_oldest_first_and_the_first_is_doubled():
    history = History(3)
    pictures = [np.full((2, 2, 3), number, np.uint8) for number in range(4)]
    joined = [history.add(look(number, front=pictures[number])) for number in range(4)]
    assert [np.asarray(each.state).tolist() for each in joined] == [
        [[0, 0], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [1, -1]],
        [[0, 0], [1, -1], [2, -2]],
        [[1, -1], [2, -2], [3, -3]],
    ]
    newest = {field: np.asarray(picture).max() for field, picture in joined[3].images.items()}
    assert newest == {"image.front.0": 1, "image.front.1": 2, "image.front.2": 3}
    assert joined[3].command == "step 3"
    history.reset()
    assert np.asarray(history.add(look(2)).state).tolist() == [[2, -2]] * 3


def test_one_step_is_no_history():
    observation = look(1)
    assert History().add(observation) is observation


def test_other_cameras_are_refused():
    history = History(2)
    history.add(look(1, front=PICTURE))
    with pytest.raises(ValueError, match=r"^an observation without the cameras of the newest: wrist$"):
        history.add(look(2, wrist=PICTURE))


def test_no_step_is_refused():
    with pytest.raises(ValueError, match=r"^history must be at least 1 step, got 0$"):
        History(0)


def test_a_players_robot_gives_single_pictures_and_the_server_gets_the_last_two():
    with running_server() as server:
        server.answer = json.dumps(ANSWER)  # two actions a chunk
        steps = iter(range(10))
        with RemotePolicy(server.url) as policy:
            player = ChunkPlayer(policy, history=2)
            for _ in range(3):
                player.action(lambda: look(next(steps)))
    sent = [json.loads(fields["state"][1]) for _, _, fields in server.requests]
    assert sent == [[[0, 0], [0, 0]], [[1, -1], [2, -2]]]
    assert sorted(server.requests[1][2]) == ["command", "image.front.0", "image.front.1", "state"]
