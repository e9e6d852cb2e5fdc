"""From demonstrations at the workbench to a policy that plans: labels, batches, a run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla import checkpoint
from vla.models import build
from vla.tabletop.demonstrations import DatasetError
from vla.training.imitation import train
from vla.training.settings import Settings
from vla.training.setup import batches_for, describe
from vla.training.workbench import WorkbenchBatches
from vla.workbench.collection import LABELLED, Collection, collect, demonstrate
from vla.workbench.commands import LONGEST, NOTHING, STEPS, TASKS, phrasings
from vla.workbench.demonstrations import Demonstrations
from vla.workbench.simulator import THINGS
from vla_runtime.actions import unnormalise
from vla_runtime.errors import SpecError


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("data") / "workbench"
    collect(Collection(out=folder, episodes=4, horizon=2, image_size=32, workers=1))
    return Settings(architecture="hierarchical", preset="tiny", data=folder, commands=LABELLED)


@pytest.fixture(scope="module")
def trained(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a few steps."""
    out = tmp_path_factory.mktemp("run")
    train(replace(settings, out=out, steps=3, batch=4, validate_every=2, threads=1, context_length=32))
    return out


def test_an_episode_depends_on_its_arguments_alone() -> None:
    one, two = (demonstrate(1, 3, 2, 32, early=0.3) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_half_of_the_episodes_begin_with_a_block_in_the_hand() -> None:
    first = [STEPS[int(demonstrate(index, 5, 1, 8).plan[0, 0, 0])].skill for index in range(16)]
    assert 5 <= first.count("place") <= 13


def test_labels_say_what_the_expert_does_next(settings: Settings) -> None:
    data = Demonstrations.load(settings.data)
    assert data.plan.shape == (len(data.state), LABELLED, LONGEST)
    assert data.actions.shape == (len(data.state), LABELLED, 2, 4)
    still = (data.actions[..., :3] == 0).all((2, 3))
    done = data.plan[..., 0] == STEPS.index(NOTHING)
    assert done.any()
    assert still[done].all()
    # Plans end, and do not go on after it.
    last = len(STEPS) - 1
    assert ((data.plan[..., :-1] != last) | (data.plan[..., 1:] == last)).all()
    # Tasks of one frame need different steps first.
    firsts = data.plan[..., 0]
    assert np.mean([len(set(row)) == LABELLED for row in firsts.tolist()]) > 0.9


def test_a_batch_holds_each_task_with_its_plan_its_words_and_its_actions(settings: Settings) -> None:
    data = Demonstrations.load(settings.data)
    config = describe(settings, data)
    drawn = WorkbenchBatches(data, config, seed=0, validation_share=0.3)
    batch = drawn.train(step=2, frames=5, commands=3)
    assert batch.plan is not None
    assert batch.commands_per_frame == 3
    assert batch.plan.shape == (15, LONGEST)
    assert config.state
    tokenizer = config.command_tokenizer()
    said = {
        tuple(tokenizer(form)[0][: batch.input_ids.shape[1]].tolist()): index
        for index, task in enumerate(TASKS)
        for form in phrasings(task)
    }
    physical = unnormalise(batch.actions.numpy(), drawn.space)
    for row, ids in enumerate(batch.input_ids.tolist()):
        state = unnormalise(batch.state.numpy()[row // 3], config.state)
        frame = np.abs(data.state - state).sum(1).argmin()
        column = data.task[frame].tolist().index(said[tuple(ids)])
        assert batch.plan[row].tolist() == data.plan[frame, column].tolist()
        np.testing.assert_allclose(physical[row], data.actions[frame, column], atol=1e-6)
        step = STEPS[int(batch.plan[row, 0])]
        thing = {"open": "handle", "nothing": None}.get(step.skill, step.target)
        place = data.things[frame][THINGS.index(thing)] if thing else data.state[frame, :3]
        np.testing.assert_array_equal(batch.objects[row // 3, batch.target[row]], place)


def test_held_out_sentences_and_episodes_are_validated_on(settings: Settings) -> None:
    data = Demonstrations.load(settings.data)
    drawn = WorkbenchBatches(data, describe(settings, data), seed=0, validation_share=0.3)
    trained, held = (set(data.episode[rows].tolist()) for rows in drawn.frames)
    assert trained
    assert held
    assert not trained & held
    one, two = (drawn.validation(4, 2) for _ in range(2))
    assert torch.equal(one.input_ids, two.input_ids)
    assert drawn.example().command in {form for task in TASKS for form in phrasings(task, held_out=True)}


def test_a_trained_policy_plans(trained: Path) -> None:
    config, model = checkpoint.load(trained)
    assert config.model["steps"] == [str(step) for step in STEPS]
    ids, mask = (torch.from_numpy(part)[None] for part in config.command_tokenizer()("open the drawer"))
    command, command_mask = model.encode_command(ids, mask)
    images, state = torch.rand(2, 1, 3, 32, 32), torch.rand(2, 4)
    with torch.inference_mode():
        answer = model.act(images, command.expand(2, -1, -1), command_mask.expand(2, -1), state, state)
    assert answer["plan"].shape == (2, LONGEST)
    assert answer["plan"].dtype == torch.int64
    skills = [config.model["skills"][skill] for skill in answer["skill"].tolist()]
    assert skills == [STEPS[step].skill for step in answer["plan"][:, 0].tolist()]


def test_padding_changes_no_plan(trained: Path) -> None:
    config, model = checkpoint.load(trained)
    ids, mask = (torch.from_numpy(part)[None] for part in config.command_tokenizer()("open the drawer"))
    images, state = torch.rand(1, 1, 3, 32, 32), torch.rand(1, 4)
    count = int(mask.sum())
    with torch.inference_mode():
        answers = [
            model.act(images, *model.encode_command(ids[:, :length], mask[:, :length]), state, state)
            for length in (count, ids.shape[1])
        ]
    torch.testing.assert_close(answers[0]["plan_probability"], answers[1]["plan_probability"])


def test_a_gripper_that_is_not_sure_is_not_told_to_stay_half_open(settings: Settings) -> None:
    """The loss grows with the distance, not with its square: then the mean of open and closed is no best."""
    torch.manual_seed(0)
    drawn = batches_for(settings)
    batch = drawn.train(0, 2, 2)
    model = build("hierarchical", drawn.config.model, drawn.config.sizes()).eval()
    with torch.inference_mode():
        near, far = (
            float(model.loss(batch._replace(actions=batch.actions + away))["motion"]) for away in (0, 1000)
        )
    assert far - near == pytest.approx(1000, abs=2)


def test_other_architectures_are_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="the workbench is for the architecture hierarchical alone"):
        train(replace(settings, architecture="early_fusion", out=tmp_path))


def test_a_data_set_of_other_tasks_is_refused(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "workbench"
    folder.mkdir()
    for path in settings.data.iterdir():
        (folder / path.name).write_bytes(path.read_bytes().replace(b"open drawer", b"shut drawer"))
    with pytest.raises(DatasetError, match="its steps and tasks are not those of vla"):
        Demonstrations.load(folder)


def test_looks_are_refused() -> None:
    with pytest.raises(ValueError, match="varied must be 0"):
        Collection(varied=0.5)
