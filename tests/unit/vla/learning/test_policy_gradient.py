"""The mathematics of preferences and policy gradients against cases by hand, and one short real training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vla import checkpoint
from vla.evaluation.report import Rate
from vla.learning.acting import Actor
from vla.learning.dagger import run as clone
from vla.learning.learner import Learner, Objective, clocked
from vla.learning.policy_gradient import Point, PolicyGradient, Run, markdown, run
from vla.learning.ppo import advantages, clipped_objective, divergence, log_probability
from vla.learning.preferences import (
    FEATURES,
    Pairs,
    Reward,
    accuracy,
    bradley_terry,
    draw_pairs,
    features,
    fit,
    judge,
    progress,
)
from vla.learning.rounds import Dagger, policy_of
from vla.tabletop.commands import Goal
from vla.tabletop.simulator import Tabletop
from vla_runtime.errors import SpecError

REACH = Goal("reach", "red")


def test_bradley_terry_is_the_likelihood_of_the_difference_of_returns():
    rewards = torch.tensor([[[1.0, 2.0], [0.5, 0.5]], [[0.0, 0.0], [0.0, 3.0]]])
    expected = -(math.log(1 / (1 + math.exp(1 - 3))) + math.log(1 / (1 + math.exp(-3)))) / 2
    assert bradley_terry(rewards, torch.tensor([0.0, 1.0])).item() == pytest.approx(expected)
    assert bradley_terry(rewards * 0, torch.tensor([0.0, 1.0])).item() == pytest.approx(math.log(2))


def test_advantages_of_three_steps_by_hand():
    rewards, values = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.5, 1.0, -1.0])
    missed = [1 + 0.9 * 1.0 - 0.5, 0 + 0.9 * -1.0 - 1.0, 2 + 0.9 * 3.0 + 1.0]
    third = missed[2]
    second = missed[1] + 0.9 * 0.8 * third
    first = missed[0] + 0.9 * 0.8 * second
    found, returns = advantages(rewards, values, 3.0, discount=0.9, decay=0.8)
    assert found.tolist() == pytest.approx([first, second, third])
    assert returns.tolist() == pytest.approx([first + 0.5, second + 1.0, third - 1.0])


def test_advantages_without_decay_of_errors_are_returns_less_values():
    rewards, values = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 6.0, 7.0])
    found, returns = advantages(rewards, values, 0.0, discount=1.0, decay=1.0)
    assert returns.tolist() == pytest.approx([6, 5, 3])
    assert found.tolist() == pytest.approx([1, -1, -4])


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "gradient"),
    [
        (1.1, 2.0, 2.2, 2.0),
        (1.5, 2.0, 2.4, 0.0),
        (0.5, 2.0, 1.0, 2.0),
        (0.5, -2.0, -1.6, 0.0),
        (1.5, -2.0, -3.0, -2.0),
    ],
)
def test_the_objective_is_clipped_where_a_step_has_gone_far_enough(ratio, advantage, gain, gradient):
    now = torch.tensor([ratio], requires_grad=True)
    objective = clipped_objective(now, torch.tensor([advantage]), 0.2)
    objective.backward()
    assert objective.item() == pytest.approx(gain)
    assert now.grad is not None
    assert now.grad.item() == pytest.approx(gradient)


def test_density_and_divergence_are_those_of_torchs_distributions():
    torch.manual_seed(0)
    mean, other, actions = torch.randn(3, 7, 4)
    log_deviation, other_log = torch.randn(2, 4)
    one, two = Normal(mean, log_deviation.exp()), Normal(other, other_log.exp())
    torch.testing.assert_close(log_probability(actions, mean, log_deviation), one.log_prob(actions).sum(-1))
    torch.testing.assert_close(
        divergence(mean, log_deviation, other, other_log), kl_divergence(one, two).sum(-1)
    )
    assert divergence(mean, log_deviation, mean, log_deviation).abs().max() < 1e-6


def test_the_script_prefers_progress_as_often_as_its_noise_lets_it():
    random = np.random.default_rng(0)
    sure = [judge(random, 0.0, 0.02, temperature=0.01, mistakes=0.0) for _ in range(2000)]
    assert np.mean(sure) == pytest.approx(1 / (1 + math.exp(-2)), abs=0.03)
    noisy = [judge(random, 0.0, 1.0, temperature=0.01, mistakes=0.2) for _ in range(2000)]
    assert np.mean(noisy) == pytest.approx(0.9, abs=0.03)


def walks(random, count):
    """Moments of hands that walk at random, nearer to a block and further from it."""
    return [
        np.cumsum(random.normal(0, 0.2, (20, FEATURES)), axis=0).astype(np.float32) + 2 for _ in range(count)
    ]


def test_a_reward_learns_what_the_script_prefers():
    random = np.random.default_rng(1)
    trained, held = (
        draw_pairs(random, walks(random, 40), count, 6, temperature=0.001, mistakes=0.0)
        for count in (600, 300)
    )
    torch.manual_seed(0)
    reward = Reward()
    before = accuracy(reward, held)
    fit(reward, trained, seed=0, epochs=20)
    after = accuracy(reward, held)
    assert before.interval[0] < 0.75
    assert after.interval[0] > 0.85
    assert reward(trained.moments).std().item() == pytest.approx(1, abs=1e-3)
    assert accuracy(reward, Pairs(held.moments, 1 - held.second)) == Rate(300 - after.successes, 300)


def test_a_step_that_changes_nothing_is_worth_nothing():
    reward = Reward()
    moments = torch.randn(4, 1, FEATURES)
    assert reward(moments.expand(4, 5, FEATURES)).abs().max() < 1e-6
    assert reward(torch.randn(4, 5, FEATURES)).abs().min() > 1e-6


def test_segments_come_from_long_episodes_alone():
    random = np.random.default_rng(0)
    short, long = np.zeros((6, FEATURES), np.float32), np.ones((7, FEATURES), np.float32)
    assert (draw_pairs(random, [short, long], 20, 6).moments == 1).all()
    with pytest.raises(ValueError, match="no episode has 6 steps"):
        draw_pairs(random, [short], 20, 6)


def test_raising_the_block_is_progress():
    moments = np.zeros((2, FEATURES), np.float32)
    moments[:, 3] = 0.5, 0.7
    assert progress(moments) == pytest.approx(3 * 0.02)
    moments[:, 2] = 0.0, -0.2
    assert progress(moments) == pytest.approx(-0.02)


def test_progress_is_how_much_nearer_the_hand_is_to_its_block():
    env = Tabletop()
    env.reset(3, REACH)
    moments, distance = [features(env)], []
    for _ in range(4):
        away = np.array(env.block("red")) - env.hand()[:3]
        distance.append(np.linalg.norm(away))
        env.step([*away, -1])
        moments.append(features(env))
    away = np.array(env.block("red")) - env.hand()[:3]
    assert progress(np.stack(moments)) == pytest.approx(distance[0] - np.linalg.norm(away), abs=1e-3)
    assert progress(np.stack(moments)) > 0.05


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tiny policy, cloned for seconds."""
    out = tmp_path_factory.mktemp("weak")
    clone(
        Dagger(
            out,
            arms=("cloning",),
            seeds=(0,),
            goals=("reach red", "lift red"),
            start="elsewhere",
            rounds=0,
            first_frames=60,
            first_steps=40,
            episodes=1,
            image_size=32,
            batch=8,
        )
    )
    return policy_of(Dagger(out), 0, "cloning", 0)


def learner_of(start, **changes):
    torch.manual_seed(0)
    return Learner(replace(Objective(), **changes), Actor.load(start), Reward(), 0)


def test_rewards_are_weighted_and_the_tasks_comes_at_the_end(start):
    learner = learner_of(start, task_weight=3.0, learned_weight=0.5)
    env = Tabletop()
    rollout = learner.explorer.run(env, 1, REACH, "rest")
    with torch.no_grad():
        expected = 0.5 * learner.reward(torch.from_numpy(rollout.moments))
    torch.testing.assert_close(learner.rewards(rollout._replace(success=False)), expected)
    expected[-1] += 3.0
    torch.testing.assert_close(learner.rewards(rollout._replace(success=True)), expected)


def test_values_are_told_no_more_of_time_than_what_has_passed(start):
    rollout = learner_of(start).explorer.run(Tabletop(), 1, REACH, "rest")
    shorter = rollout._replace(moments=rollout.moments[:5])
    assert torch.equal(clocked(rollout)[:5], clocked(shorter))


def test_noise_has_the_deviation_that_is_asked_for(start):
    learner = learner_of(start, deviation=0.25)
    rollout = learner.explorer.run(Tabletop(), 1, REACH, "elsewhere")
    with torch.no_grad():
        means = learner.head.means(rollout.seen)
    noise = rollout.actions - means
    assert noise.std().item() == pytest.approx(0.25, abs=0.06)
    torch.testing.assert_close(
        rollout.log_probability, Normal(means, 0.25).log_prob(rollout.actions).sum(-1), atol=1e-4, rtol=1e-4
    )


def test_divergence_holds_the_policy_back(start):
    env = Tabletop()
    moved = {}
    for weight in (0.0, 100.0):
        learner = learner_of(start, divergence_weight=weight, learning_rate=1e-3)
        rollouts = [learner.explorer.run(env, seed, REACH, "rest") for seed in range(2)]
        moved[weight] = learner.update(rollouts)
    assert moved[0.0] > 2 * moved[100.0]


@pytest.mark.slow
def test_a_tiny_policys_return_improves(start, tmp_path):
    config = PolicyGradient(
        (start,),
        tmp_path / "run",
        goals=("reach red",),
        start="rest",
        watched=20,
        pairs=400,
        iterations=10,
        rolled_out=8,
        episodes=8,
        judge_every=10,
    )
    [result] = run(config)
    assert Rate(result.right, result.held_out).interval[0] > 0.6
    assert np.mean(result.returns[-3:]) > np.mean(result.returns[:3]) + 0.2
    assert [point.iteration for point in result.points] == [0, 10]
    written, _ = checkpoint.load(tmp_path / "run" / "seed0")
    assert written.architecture == "command_attention"
    assert run(replace(config, resume=True)) == [result]
    with pytest.raises(SpecError, match="holds a run already"):
        run(config)


def test_the_table_has_every_point():
    runs = [
        Run(seed, 90, 100, (0.1, 0.5), (0.2, 0.3), (Point(0, 2, 10), Point(2, 6 + seed, 10)))
        for seed in (0, 1)
    ]
    lines = markdown(runs).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == [
        "2",
        "65 [43, 82]",
        "6 of 10, 7 of 10",
        "0.50 0.50",
        "0.30 0.30",
    ]
    assert lines[-1] == "Held-out pairs ordered as the script has them [%]: 90 [83, 94], 90 [83, 94]."
