"""Mirrored samples: twice gives the sample, bit for bit; executed in the mirrored scene they succeed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vla.data.episodes import About, DataError, Episode
from vla.data.mirror import Mirror, Reflection, can_be_mirrored, words
from vla.data.tabletop import MIRROR
from vla.tabletop.commands import GOALS, Goal, phrase
from vla.tabletop.expert import expert_action
from vla.tabletop.simulator import ACTION, EPISODE_STEPS, STATE, Tabletop

SIZE = 32
ABOUT = About(
    "vla_tabletop",
    10.0,
    {"front": (SIZE, SIZE)},
    tuple(each.name for each in STATE),
    tuple(each.name for each in ACTION),
)
TWO_ARMS = About("two", 10.0, {"left": (4, 6), "right": (4, 6), "top": (4, 6)}, ("l", "r", "yaw"), ("l", "r"))
SWAP = Mirror(state=("yaw", "l", "r"), swap=(("left", "right"), ("l", "r")))


@pytest.fixture(scope="module")
def env() -> Tabletop:
    return Tabletop()


def demonstrated(env: Tabletop, seed: int, goal: Goal) -> Episode:
    """What the expert does, as it is recorded."""
    pictures, states, actions = [], [], []
    env.reset(seed, goal)
    while not env.over:
        pictures.append(Image.fromarray(env.render(SIZE)))
        states.append(env.state())
        actions.append(expert_action(env, goal))
        env.step(actions[-1])
    assert env.success
    count = len(actions)
    said = f"{phrase(goal, seed)} on the left"
    return Episode({"front": pictures}, np.stack(states), np.stack(actions), (said,) * count, env.success)


def succeeds(env: Tabletop, seed: int, goal: Goal, actions: np.ndarray) -> bool:
    """Whether actions do the task in the mirrored scene, without a look at it."""
    env.reset(seed, goal)
    env.reflect()
    for action in actions:
        if env.step(action):
            break
    return env.success


def drawn(about: About, seed: int) -> Episode:
    random = np.random.default_rng(seed)
    pictures = {
        name: [Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)) for _ in range(3)]
        for name, size in about.cameras.items()
    }
    state = random.normal(size=(3, len(about.state))).astype(np.float32)
    actions = random.normal(size=(3, len(about.action))).astype(np.float32)
    return Episode(pictures, state, actions, ("Turn LEFT, then to the right hand", "go", "Right arm"))


@pytest.mark.parametrize(("about", "mirror"), [(ABOUT, MIRROR), (TWO_ARMS, SWAP)])
def test_mirrored_twice_is_the_sample(about: About, mirror: Mirror) -> None:
    episode, reflection = drawn(about, 1), Reflection.of(mirror, about)
    once = reflection.episode(episode)
    twice = reflection.episode(once)

    assert once.commands == ("Turn RIGHT, then to the left hand", "go", "Left arm")
    assert not np.array_equal(once.state, episode.state)
    assert twice.state.tobytes() == episode.state.tobytes()
    assert twice.actions.tobytes() == episode.actions.tobytes()
    assert twice.commands == episode.commands
    for name, pictures in episode.images.items():
        assert all(
            one.tobytes() == two.tobytes() for one, two in zip(pictures, twice.images[name], strict=True)
        )
        assert once.images[name][0].tobytes() != pictures[0].tobytes()


def test_arms_and_cameras_change_places() -> None:
    episode, reflection = drawn(TWO_ARMS, 2), Reflection.of(SWAP, TWO_ARMS)
    once = reflection.episode(episode)

    assert np.array_equal(once.state, episode.state[:, [1, 0, 2]] * np.float32(-1))
    assert np.array_equal(once.actions, episode.actions[:, ::-1])
    assert np.array_equal(np.asarray(once.images["left"][0]), np.asarray(episode.images["right"][0])[:, ::-1])
    assert np.array_equal(np.asarray(once.images["top"][0]), np.asarray(episode.images["top"][0])[:, ::-1])
    stack = np.stack([np.asarray(each[0]).transpose(2, 0, 1) for each in episode.images.values()])
    expected = np.stack([np.asarray(each[0]).transpose(2, 0, 1) for each in once.images.values()])
    assert np.array_equal(reflection.images(stack), expected)


def test_a_reflected_scene_reflected_is_the_scene(env: Tabletop) -> None:
    goal = Goal("lift", "red")
    env.reset(4, goal)
    for _ in range(7):
        env.step(expert_action(env, goal))
    before = env.snapshot()
    env.reflect()
    mirrored = env.state()
    env.reflect()

    assert env.snapshot().physics.tobytes() == before.physics.tobytes()
    assert np.array_equal(env.snapshot().start, before.start)
    assert np.array_equal(mirrored, env.state() * np.array([1, -1, 1, 1], np.float32))


@pytest.mark.parametrize("goal", GOALS[::2], ids=" ".join)
def test_a_mirrored_demonstration_succeeds_in_the_mirrored_scene(env: Tabletop, goal: Goal) -> None:
    seed = 100 + GOALS.index(goal)
    episode = demonstrated(env, seed, goal)
    mirrored = Reflection.of(MIRROR, ABOUT).episode(episode)
    env.reset(seed, goal)
    env.reflect()

    assert np.array_equal(env.state(), mirrored.state[0])
    np.testing.assert_allclose(expert_action(env, goal), mirrored.actions[0], atol=1e-6)
    # The lamp stands aside: shades differ, places do not.
    seen, expected = env.render(SIZE).astype(int), np.asarray(mirrored.images["front"][0]).astype(int)
    assert abs(seen - expected).mean() < 4 < abs(seen[:, ::-1] - expected).mean()
    assert succeeds(env, seed, goal, mirrored.actions)
    assert len(mirrored) <= EPISODE_STEPS


def test_without_the_mirror_the_same_actions_fail(env: Tabletop) -> None:
    missed = [
        not succeeds(env, 100 + index, goal, demonstrated(env, 100 + index, goal).actions)
        for index, goal in enumerate(GOALS[:6])
    ]
    assert sum(missed) >= 5


@pytest.mark.parametrize(
    ("command", "mirrored"),
    [
        ("push it to the left", "push it to the right"),
        ("the LEFTMOST cup, Right of it", "the RIGHTMOST cup, Left of it"),
        ("turn the knob clockwise", "turn the knob counterclockwise"),
        ("a bright copyright", "a bright copyright"),
    ],
)
def test_words_of_sides_change_places(command: str, mirrored: str) -> None:
    assert words(command) == mirrored
    assert can_be_mirrored(command)
    assert words(mirrored) == command


@pytest.mark.parametrize(
    "command",
    [
        "stop right now",
        "come right away",
        "that's all right",
        "what's left",
        "eat the leftovers",
        "lEFT arm",
        "right, lift it",
        "go right to it",
    ],
)
def test_words_that_mean_no_side_are_not_mirrored(command: str) -> None:
    assert not can_be_mirrored(command)
    said = replace(drawn(ABOUT, 3), commands=(command,) * 3)
    with pytest.raises(DataError, match="can't be mirrored"):
        Reflection.of(MIRROR, ABOUT).episode(said)


@given(st.lists(st.sampled_from(["left", "Right", "RIGHTMOST", "clockwise", "now", "all", "of", "is", "x"])))
def test_whatever_can_be_mirrored_comes_back(parts: list[str]) -> None:
    command = " ".join(parts)
    if can_be_mirrored(command):
        assert words(words(command)) == command
        assert can_be_mirrored(words(command))


@pytest.mark.parametrize(
    ("mirror", "message"),
    [
        (Mirror(state=("hand_w",)), "names 'hand_w'"),
        (Mirror(swap=(("front", "hand_x"),)), "swaps 'front' with 'hand_x'"),
    ],
)
def test_names_that_are_nowhere_are_refused(mirror: Mirror, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Reflection.of(mirror, ABOUT)
