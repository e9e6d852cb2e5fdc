"""Policies that choose, among symbols or bins, learn to choose right on frames that they have not seen."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from export.export import Options, export
from vla import checkpoint
from vla.learning.acting import Actor, Planner
from vla.learning.judge import Judge, judge
from vla.tabletop.collection import Collection, collect
from vla.tabletop.commands import COLOURS, GOALS, TASKS, Goal
from vla.tabletop.expert import PUSH_BEHIND, PUSH_CLEAR, ended
from vla.tabletop.simulator import Tabletop
from vla.tabletop.steps import PLAN, STEPS, carry_out, remaining
from vla.training.choices import choices
from vla.training.imitation import train
from vla.training.settings import Settings
from vla.training.setup import batches_for
from vla_runtime.errors import SpecError
from vla_runtime.spec import DiscreteSpace

BLOCK = (0.02, -0.05, 0.02)
FAR = (-0.1, 0.1, 0.15, 1.0)
BEHIND = (BLOCK[0] - PUSH_BEHIND, BLOCK[1], 0.016, 0.0)


@pytest.mark.parametrize(
    ("goal", "hand", "done", "steps"),
    [
        (("reach", "blue"), FAR, False, ["go to the blue block", "wait", "wait"]),
        (("reach", "blue"), FAR, True, ["wait", "wait", "wait"]),
        (("lift", "red"), FAR, False, ["go to the red block", "grasp", "raise"]),
        (("lift", "red"), (0.02, -0.05, 0.03, 1.0), False, ["grasp", "raise", "wait"]),
        (("lift", "red"), (0.02, -0.05, 0.02, 0.6), False, ["raise", "wait", "wait"]),
        (("push", "green"), FAR, False, ["go behind the green block", "push", "wait"]),
        (("push", "green"), BEHIND, False, ["push", "wait", "wait"]),
        (("push", "green"), (*BEHIND[:2], 0.05, 0.0), False, ["go behind the green block", "push", "wait"]),
        # Too far over the block to come down behind it.
        (
            ("push", "green"),
            (BLOCK[0] - PUSH_CLEAR + 0.02, *BEHIND[1:]),
            False,
            ["go behind the green block", "push", "wait"],
        ),
    ],
)
def test_the_steps_that_remain(goal, hand, done, steps):
    assert [STEPS[index] for index in remaining(Goal(*goal), hand, BLOCK, done=done)] == steps


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choices")
    collect(Collection(folder / "data", episodes=12, horizon=2, image_size=32, varied=0, early=0, workers=1))
    return Settings(
        architecture="realtime",
        preset="tiny",
        data=folder / "data",
        out=folder / "symbolic",
        symbolic=True,
        steps=80,
        batch=32,
        commands=4,
        learning_rate=1e-2,
        validation_share=0.2,
        validate_every=40,
        threads=1,
    )


@pytest.fixture(scope="module")
def planner(settings):
    train(settings)
    return settings.out


def test_a_planner_learns_which_steps_remain(settings, planner):
    about = json.loads((planner / checkpoint.PROVENANCE).read_text())
    points = json.loads((planner / "progress.json").read_text())["points"]
    assert points[-1]["loss"] < 0.8 * points[0]["loss"]
    assert about["choices"]["right"] > about["choices"]["guessed"] + 0.1
    wrong = list(about["validation_error"].values())
    assert list(about["validation_error"]) == ["symbol 1 [1]", "symbol 2 [1]", "symbol 3 [1]"]
    assert about["choices"]["right"] == pytest.approx(1 - np.mean(wrong), abs=1e-6)


def test_a_planner_is_a_policy_of_discrete_actions(planner):
    config, model = checkpoint.load(planner)
    assert isinstance(config.action, DiscreteSpace)
    assert (config.action.vocabulary, config.action.horizon) == (STEPS, PLAN)
    assert (config.safety.mode, config.safety.hold_action) == ("hold", "wait")
    images, state = torch.zeros(2, 1, 3, 32, 32), torch.zeros(2, 4)
    ids, mask = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
    with torch.inference_mode():
        answer = model.act(images, *model.encode_command(ids, mask), state, torch.zeros(2, 0, 0))
    assert answer["logits"].shape == (2, PLAN, len(STEPS))
    assert "actions" not in answer
    with pytest.raises(SpecError, match="continuous actions"):
        Actor(config, model)


def test_a_batch_has_the_steps_of_each_frame_and_goal(settings):
    batch: Any = batches_for(settings).train(0, 6, 3)
    assert batch.symbols.shape == (18, PLAN)
    for index, symbols in enumerate(batch.symbols.tolist()):
        frame, target = index // 3, int(batch.target[index])
        opening = (float(batch.state[frame, 3]) + 1) / 2
        hand, block = (*batch.hand[frame].tolist(), opening), batch.objects[frame, target].tolist()
        goal = Goal(TASKS[batch.skill[index]], COLOURS[target])
        assert symbols == remaining(goal, hand, block, done=bool(batch.done[index]))


def test_bins_are_learned_by_cloning(settings, tmp_path):
    binned = replace(settings, architecture="rt2", symbolic=False, out=tmp_path)
    train(binned)
    about = json.loads((tmp_path / checkpoint.PROVENANCE).read_text())
    points = json.loads((tmp_path / "progress.json").read_text())["points"]
    assert points[-1]["loss"] < 0.9 * points[0]["loss"]
    assert about["choices"]["right"] > about["choices"]["guessed"] + 0.05


def test_choices_are_counted_by_hand(planner, settings):
    _, model = checkpoint.load(planner)
    batch = batches_for(settings).validation(2, 2)
    last: Any = model.get_submodule("action_head.mlp.2")
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.eye(len(STEPS))[[0, 1, 2]].flatten())
    symbols = torch.tensor([[0, 1, 2], [0, 3, 3], [0, 3, 2], [4, 3, 3]])
    found = choices(model, batch._replace(symbols=symbols), "cpu")
    assert found == {"right": pytest.approx(6 / 12), "guessed": pytest.approx(8 / 12)}


def test_symbols_of_other_architectures_or_with_a_teacher_are_refused(settings, tmp_path):
    with pytest.raises(ValueError, match="symbolic is for efficient, memory_efficient, realtime, not clip"):
        replace(settings, architecture="clip")
    with pytest.raises(ValueError, match="symbolic policies have no teacher"):
        replace(settings, teacher=tmp_path)
    with pytest.raises(ValueError, match="no other data has these steps"):
        batches_for(replace(settings, data=tmp_path / "mixture.json"))


def test_the_right_steps_carried_out_succeed():
    env = Tabletop()
    for index, goal in enumerate(GOALS * 2):
        env.reset(7_700_000 + index, goal)
        while not env.over:
            plan = remaining(goal, env.hand(), env.block(goal.colour), done=ended(env, goal))
            env.step(carry_out(STEPS[plan[0]], env.state(), env.blocks()))
        assert env.success, goal


@pytest.mark.slow
def test_a_planner_is_exported(planner, tmp_path):
    spec = export(Options(str(planner), tmp_path / "planner.mar", buckets=(1, 2)))
    assert spec.action.names == STEPS
    assert set(spec.artifact.outputs) == {"attention", "logits"}
    assert len(spec.example.names) == PLAN


def test_a_planner_is_judged_in_closed_loop(planner):
    text = judge(Judge((planner,), goals=("reach red",), episodes=2))
    assert text.splitlines()[-1].endswith("| 2        |")
    foreign, model = checkpoint.load(planner)
    space = DiscreteSpace(vocabulary=(*STEPS[:-1], "stop"), horizon=PLAN, control_hz=10.0)
    with pytest.raises(SpecError, match="needs the tabletop's steps to plan in the simulator"):
        Planner(msgspec.structs.replace(foreign, action=space), model)
