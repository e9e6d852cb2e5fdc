"""The tabletop by Gymnasium's interface."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vla.tabletop.commands import HELD_OUT, Goal
from vla.tabletop.environment import TabletopEnv
from vla.tabletop.expert import expert_action
from vla.tabletop.simulator import EPISODE_STEPS

NAME = "vla.tabletop.environment:vla/Tabletop-v0"


@pytest.fixture
def made():
    """Make environments, and close them."""
    envs = []

    def make(**settings):
        envs.append(TabletopEnv(image_size=32, **settings))
        return envs[-1]

    yield make
    for env in envs:
        env.close()


def run(env, options):
    """Let the expert act to the end of an episode: all rewards, and what the last step said."""
    env.reset(seed=0, options=options)
    rewards = []
    for _ in range(EPISODE_STEPS):
        _, reward, terminated, truncated, info = env.step(expert_action(env.tabletop, env.tabletop.goal))
        rewards.append(reward)
        if terminated or truncated:
            return rewards, terminated, truncated, info
    raise AssertionError("the episode never ended")


def test_gymnasium_finds_no_fault():
    env = gymnasium.make(NAME, image_size=32, render_mode="rgb_array", varied=True)
    check_env(env.unwrapped)
    env.close()


def test_the_expert_is_rewarded_once(made):
    rewards, terminated, truncated, info = run(made(), {"goal": "lift blue", "scene": 5})
    assert (terminated, truncated, sum(rewards), rewards[-1]) == (True, False, 1.0, 1.0)
    assert info == {"goal": "lift blue", "success": True, "outcome": "blue", "disturbed": []}


def test_a_task_may_have_to_stay_done(made):
    options = {"goal": "lift red", "scene": 5}
    at_once, *_ = run(made(), options)
    later, *_, info = run(made(dwell=6), options)
    assert len(later) == len(at_once) + 5
    assert info["success"]


def test_another_block_ends_the_episode_as_a_failure(made):
    env = made()
    env.reset(seed=0, options={"goal": "lift red", "scene": 5})
    terminated, info = False, {}
    while not terminated:
        _, reward, terminated, truncated, info = env.step(expert_action(env.tabletop, Goal("lift", "green")))
        assert (reward, truncated) == (0.0, False)
    assert (info["success"], info["outcome"], info["disturbed"]) == (False, "green", ["green"])


def test_standing_still_is_truncated(made):
    env = made()
    env.reset(seed=0)
    ends = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(50)]
    assert ends[-1] == (False, True)
    assert not any(terminated or truncated for terminated, truncated in ends[:-1])


def test_seeds_repeat_episodes(made):
    one, other = made(varied=True, kind="landmark"), made(varied=True, kind="landmark")
    for seed in (3, None, None):
        (first, info), (second, again) = one.reset(seed=seed), other.reset(seed=seed)
        assert info == again
        assert first["command"] == second["command"]
        np.testing.assert_array_equal(first["front"], second["front"])
    assert one.reset(seed=4)[0]["command"] != first["command"]


def test_goals_are_said_as_wanted(made):
    goal = {"goal": "push yellow"}
    plain = {made().reset(seed=seed, options=goal)[0]["command"] for seed in range(4)}
    assert plain <= {form.format(colour="yellow") for form in HELD_OUT["push"]}
    assert "yellow" not in made(kind="typo").reset(seed=1, options=goal)[0]["command"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dwell": 0}, "dwell must be between 1 and 50, got 0"),
        ({"render_mode": "human"}, "render_mode must be rgb_array or None, got 'human'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(made, settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)


def test_unknown_options_are_refused(made):
    with pytest.raises(ValueError, match="unknown options colour; valid: goal, scene"):
        made().reset(options={"colour": "red"})
    with pytest.raises(ValueError, match="unknown goal 'lift'"):
        made().reset(options={"goal": "lift"})
