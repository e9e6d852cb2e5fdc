"""Observations are checked before they are sent; chunks are played one action a step."""

import re
from typing import Any

import numpy as np
import pytest

from vla_client import ActionChunk, ChunkPlayer, Observation, PolicyUnavailable, SafetyReport

PICTURE = np.zeros((24, 32, 3), np.uint8)
OBSERVATION = Observation(PICTURE, "lift the red block")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PICTURE.astype(float), "image must be uint8 [H, W, 3] RGB, got float64 [24, 32, 3]"),
        (PICTURE[..., 0], "image must be uint8 [H, W, 3] RGB, got uint8 [24, 32]"),
        ({"top": PICTURE[None]}, "image.top must be uint8 [H, W, 3] RGB, got uint8 [1, 24, 32, 3]"),
    ],
)
def test_wrong_pictures_are_refused(image, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Observation(image, "go")


def test_a_path_is_no_picture():
    expected = "image must be a uint8 array [H, W, 3] or the bytes of a JPEG, PNG or WebP file, got str"
    path: Any = "a.jpg"
    with pytest.raises(TypeError, match=f"^{re.escape(expected)}$"):
        Observation(path, "go")


def test_a_wrong_state_is_refused():
    expected = "state must be a list of finite numbers, got shape (2,): [0.0, nan]"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        Observation(PICTURE, "go", [0.0, float("nan")])


class Counting:
    """A policy whose n-th chunk is three actions n, n + 0.1, n + 0.2; refuses the requests in `refused`."""

    def __init__(self, refused=()):
        self.seen = []
        self.refused = refused

    def infer(self, observation):
        self.seen.append(observation)
        if len(self.seen) in self.refused:
            raise PolicyUnavailable("away")
        actions = np.array([[len(self.seen) + step / 10] for step in range(3)], np.float32)
        return ActionChunk(actions, ("a",), 10.0, None, SafetyReport("ok"), {}, "counting", "1", "r")


@pytest.mark.parametrize(
    ("replan", "expected"),
    [
        (None, [1.0, 1.1, 1.2, 2.0, 2.1, 2.2, 3.0]),
        (1, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]),
        (2, [1.0, 1.1, 2.0, 2.1, 3.0, 3.1, 4.0]),
        (9, [1.0, 1.1, 1.2, 2.0, 2.1, 2.2, 3.0]),
    ],
)
def test_player_replans(replan, expected):
    player = ChunkPlayer(Counting(), replan)
    played = [player.action(lambda: OBSERVATION) for _ in expected]
    assert all(action.shape == (1,) for action in played)
    np.testing.assert_allclose(np.concatenate(played), np.float32(expected))


def test_player_observes_only_when_it_asks():
    policy = Counting()
    player = ChunkPlayer(policy, replan=3)
    looks = iter(range(2))
    for _ in range(6):
        player.action(lambda: Observation(PICTURE, "go", [next(looks)]))
    assert [observation.state for observation in policy.seen] == [[0], [1]]


def test_player_reset_asks_afresh():
    player = ChunkPlayer(Counting(), replan=3)
    assert player.chunk is None
    assert player.action(lambda: OBSERVATION) == 1
    player.reset()
    assert player.chunk is None
    assert player.action(lambda: OBSERVATION) == 2


def test_player_asks_again_after_a_failure():
    player = ChunkPlayer(Counting(refused=(2,)), replan=1)
    assert player.action(lambda: OBSERVATION) == 1
    with pytest.raises(PolicyUnavailable):
        player.action(lambda: OBSERVATION)
    assert player.chunk is None
    assert player.action(lambda: OBSERVATION) == 3


def test_player_refuses_to_play_nothing():
    with pytest.raises(ValueError, match=r"^replan must be at least 1 step, got 0$"):
        ChunkPlayer(Counting(), replan=0)
