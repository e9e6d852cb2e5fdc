"""Closed-loop evaluation: trials, episodes with the scripted expert as the policy, pictures, files."""

import contextlib
import io
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL.GifImagePlugin import GifImageFile

from vla.evaluation.conditions import CONDITIONS, trials
from vla.evaluation.episodes import ENDING_STEPS, Setup, observe, run_all, run_episode
from vla.evaluation.evaluate import Evaluation, evaluate, write
from vla.evaluation.policies import ArchivedPolicy, ExpertPolicy, RandomPolicy
from vla.evaluation.render import animate, contact_sheet, record
from vla.evaluation.report import Rate, largest_difference
from vla.tabletop.commands import COLOURS, GOALS, HELD_OUT, Goal, parse
from vla.tabletop.expert import expert_action
from vla.tabletop.simulator import Tabletop
from vla_client import ActionChunk, InvalidAnswer, Observation, PolicyError, SafetyReport
from vla_client.observation import encode
from vla_runtime.errors import InvalidValue
from vla_runtime.policy import Answer, Policy

NAMES = ("delta_x", "delta_y", "delta_z", "gripper")


def chunk(actions, status="ok", **timing):
    return ActionChunk(
        np.atleast_2d(actions), NAMES, 10.0, None, SafetyReport(status), timing, "test", "1", "r"
    )


@pytest.fixture(scope="module")
def env():
    with contextlib.closing(Tabletop()) as simulator:
        yield simulator


class Told:
    """An expert that reads the command, as a good policy does, and the simulator instead of the picture."""

    def __init__(self, env):
        self.env = env
        self.commands = set()

    def infer(self, observation):
        self.commands.add(observation.command)
        colour = re.search("red|green|blue|yellow", observation.command)
        assert colour, observation.command
        return chunk(expert_action(self.env, Goal(self.env.goal.task, colour[0])), batch_size=2)


class Refusing:
    """A policy that serves three chunks and then fails."""

    def __init__(self, failure):
        self.failure = failure
        self.left = 3

    def infer(self, observation):
        if self.left == 0:
            raise self.failure
        self.left -= 1
        return chunk(np.zeros(4, np.float32), "clamped")


# Trials


@pytest.mark.parametrize("condition", CONDITIONS)
def test_trials_are_balanced_and_share_their_scenes(condition):
    made = trials(condition, 24, 100_000)
    assert [trial.seed for trial in made] == list(range(100_000, 100_024))
    assert [trial.goal for trial in made] == list(GOALS) * 2
    assert {trial.condition for trial in made} == {condition}
    assert all(trial.commanded.colour in trial.command for trial in made)


def test_trials_of_chosen_goals():
    chosen = (parse("lift blue"), parse("push yellow"))
    made = trials("shuffled", 6, 100_000, chosen)
    assert [trial.goal for trial in made] == list(chosen) * 3
    assert {trial.commanded for trial in made} - set(chosen)  # any other goal may be commanded
    assert Evaluation(goals=("lift blue", "push yellow"), archive=Path("x")).pursued == chosen
    assert Evaluation(archive=Path("x")).pursued == GOALS
    with pytest.raises(ValueError, match="unknown goal 'lift pink'; valid: reach red, "):
        Evaluation(goals=("lift pink",), archive=Path("x"))


def test_phrasings():
    forms = [form for task in HELD_OUT.values() for form in task]
    held_out = {form.format(colour=colour) for form in forms for colour in COLOURS}
    assert {trial.command for trial in trials("held_out", 48, 100_000)} == held_out
    assert not held_out & {trial.command for trial in trials("seen", 120, 100_000)}


def test_wrong_colour_tells_every_other_colour_of_the_same_task():
    made = trials("wrong_colour", 36, 100_000)
    assert all(trial.commanded.task == trial.goal.task for trial in made)
    assert {trial.commanded.colour for trial in made if trial.goal.colour == "red"} == {
        "green",
        "blue",
        "yellow",
    }


def test_shuffled_tells_another_goal_reproducibly():
    made = trials("shuffled", 120, 100_000)
    assert all(trial.commanded != trial.goal for trial in made)
    assert made == trials("shuffled", 120, 100_000)
    assert len({trial.commanded for trial in made}) == len(GOALS)


# Episodes


def test_expert_succeeds_on_every_task(env):
    for trial in trials("held_out", 12, 100_000)[::4]:
        episode = run_episode(env, ExpertPolicy(env), trial, Setup())
        assert (episode.success, episode.outcome, episode.error) == (True, trial.goal.colour, None)
        assert episode.steps == len(episode.latency_ms) == env.steps
        assert episode.first is not None
        assert episode.first.shape == (1, 4)


def test_replanning_asks_once_a_chunk(env):
    [trial] = trials("seen", 1, 100_000)
    episode = run_episode(env, ExpertPolicy(env, horizon=8), trial, Setup(replan=4))
    assert episode.success
    assert len(episode.latency_ms) == -(-episode.steps // 4)
    assert episode.first is not None
    assert episode.first.shape == (8, 4)


class Ending:
    """The expert, which calls its task done from the `first`-th observation after the success on."""

    def __init__(self, env, first):
        self.env, self.first, self.after, self.asked = env, first, 0, 0

    def infer(self, observation):
        self.asked += 1
        self.after += self.env.success
        done = 1.0 if self.after >= self.first else 0.0
        answer = ExpertPolicy(self.env).infer(observation)
        return replace(answer, extras={"done": done})


@pytest.mark.parametrize(
    ("first", "after", "in_time", "early"),
    [
        (1, 1, True, False),  # said twice: at the success, and a step later
        (ENDING_STEPS, ENDING_STEPS, True, False),
        (ENDING_STEPS + 1, None, False, False),
        (0, None, False, True),
    ],
)
def test_a_success_is_followed_until_it_is_called_done(env, first, after, in_time, early):
    [trial] = trials("held_out", 1, 100_000)
    bare = run_episode(env, ExpertPolicy(env), trial, Setup())
    episode = run_episode(env, policy := Ending(env, first), trial, Setup())
    assert (bare.says_done, bare.done_at, bare.done_early, bare.done_in_time) == (False, None, False, False)
    assert (episode.success, episode.steps, len(episode.latency_ms)) == (True, bare.steps, bare.steps)
    assert episode.done_at == (1 if early else after and bare.steps + after)
    assert (episode.says_done, episode.done_in_time, episode.done_early) == (True, in_time, early)
    assert policy.asked == bare.steps + (0 if early else min(first, ENDING_STEPS) + 1)


class LettingGo:
    """The expert, which opens its hand once it has succeeded."""

    def __init__(self, env):
        self.env = env

    def infer(self, observation):
        answer = ExpertPolicy(self.env).infer(observation)
        if not self.env.success:
            return answer
        return replace(answer, actions=np.array([[0, 0, 0.03, -1.0]], np.float32))


def test_success_that_does_not_stay_is_told_from_one_that_does(env):
    trial = replace(trials("held_out", 1, 100_000)[0], goal=Goal("lift", "green"))
    kept = run_episode(env, ExpertPolicy(env), trial, Setup(dwell=10))
    dropped = run_episode(env, LettingGo(env), trial, Setup(dwell=10))
    assert (kept.success, kept.stayed, kept.disturbed) == (True, True, 0)
    assert (dropped.success, dropped.stayed) == (True, False)
    assert dropped.steps == kept.steps


def test_dwell_is_bounded():
    with pytest.raises(ValueError, match=r"^dwell must be from 0 to 10 steps, got 11$"):
        Setup(dwell=11)


def test_other_blocks_that_move_are_counted(env):
    env.reset(100_000, Goal("push", "green"))
    assert env.disturbed() == []
    while not env.success:
        env.step(expert_action(env, env.goal))
    assert env.disturbed() == []
    moved = env.snapshot()
    env.restore(moved._replace(goal=Goal("push", "red")))
    assert env.disturbed() == ["green"]


def test_wrong_colour_is_judged_on_the_original_block(env):
    for trial in trials("wrong_colour", 12, 100_000)[1::5]:
        policy = Told(env)
        episode = run_episode(env, policy, trial, Setup())
        assert policy.commands == {trial.command}
        assert episode.outcome == trial.commanded.colour != trial.goal.colour
        assert not episode.success
        assert episode.batch_sizes == (2,) * episode.steps


def test_refusal_ends_the_episode_as_a_failure(env):
    [trial] = trials("held_out", 1, 100_000)
    refusal = PolicyError(503, "unsafe_action", None, "outside its limits")
    episode = run_episode(env, Refusing(refusal), trial, Setup())
    assert (episode.success, episode.error, episode.steps) == (False, "unsafe_action", 3)
    assert episode.interventions == 3


def test_nonsense_ends_the_evaluation():
    made = trials("held_out", 4, 100_000)
    with pytest.raises(InvalidAnswer, match=r"^nonsense$"):
        run_all(made, lambda _: nullcontext(Refusing(InvalidAnswer("nonsense"))), Setup(), 2, "test")


def test_observation_is_a_lossless_picture_and_the_state(env):
    [trial] = trials("held_out", 1, 100_000)
    env.reset(trial.seed, trial.goal)
    observation = observe(env, trial, Setup(image_size=64))
    np.testing.assert_array_equal(decoded(observation), env.render(64))
    np.testing.assert_array_equal(observation.state, env.state())
    assert (observation.command, observation.seed) == (trial.command, 100_000)


def test_blank_is_uniform_grey(env):
    [trial] = trials("blank", 1, 100_000)
    env.reset(trial.seed, trial.goal)
    assert np.unique(decoded(observe(env, trial, Setup()))).tolist() == [127]


def decoded(observation):
    return np.asarray(PIL.Image.open(io.BytesIO(observation.image)))


def test_robots_at_once_give_what_one_robot_gives():
    made = trials("random", 6, 100_000)
    alone = run_all(made, lambda _: nullcontext(RandomPolicy()), Setup(), 1, "test")
    together = run_all(made, lambda _: nullcontext(RandomPolicy()), Setup(), 3, "test")
    for one, other in zip(alone, together, strict=True):
        assert (one.trial, one.outcome, one.steps) == (other.trial, other.outcome, other.steps)
    assert largest_difference(alone, together) == 0


# The archive in-process


def test_archived_policy_answers_as_the_runtime_does(tiny_archive, tiny_folder):
    picture = np.random.default_rng(1).integers(0, 256, (96, 96, 3), np.uint8)
    observation = Observation(encode(picture, "png"), "push the red block", [0.1, 0.5], seed=3)
    row = {"image": observation.image, "command": "push the red block", "state": [0.1, 0.5], "seed": 3}
    [expected] = Policy.load(tiny_folder).infer([row])
    assert isinstance(expected, Answer)
    with ArchivedPolicy(tiny_archive) as policy:
        answer = policy.infer(observation)
        np.testing.assert_array_equal(answer.actions, expected.chunk.actions)
        assert answer.action_names == ("delta_x", "gripper")
        assert (answer.control_hz, answer.timing_ms["batch_size"]) == (10.0, 1)
        with pytest.raises(InvalidValue, match=r"^must be a JSON array of 2 numbers"):
            policy.infer(Observation(picture, "go", [0.1]))


# Pictures and files


def test_pictures(env, tmp_path):
    chosen = [trials("expert", 12, 100_000)[index] for index in (0, 5)]
    recordings = [record(env, ExpertPolicy(env), trial, Setup()) for trial in chosen]
    assert [len(r.frames) for r in recordings] == [r.episode.steps + 1 for r in recordings]
    animate(recordings, tmp_path / "a.gif")
    contact_sheet(recordings, tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.gif") as animation:
        assert isinstance(animation, GifImageFile)
        assert animation.size == (2 * 250 + 10, 314)
        assert animation.info["duration"] == 100
        assert 2 <= animation.n_frames <= max(len(r.frames) for r in recordings)
    with PIL.Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size == (6 * 250 + 10, 2 * 304 + 10)


def test_baselines_end_to_end(tmp_path):
    config = Evaluation(conditions=("expert", "random"), episodes=3, robots=2, out=tmp_path, pictures=False)
    results = evaluate(config)
    assert [(summary.condition, summary.total) for summary in results[0]] == [
        ("expert", Rate(3, 3)),
        ("random", Rate(0, 3)),
    ]
    text = write(config, results)
    assert (tmp_path / "evaluation.md").read_text() == text
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["configuration"]["episodes"] == 3
    assert report["summaries"][0]["success"] == 1.0
    assert len(report["episodes"]) == 6
    assert report["episodes"][0]["trial"]["goal"] == ["reach", "red"]
    with PIL.Image.open(tmp_path / "success.png") as picture:
        assert picture.format == "PNG"
