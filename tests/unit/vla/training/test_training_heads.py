"""Training the heads of a `grounded` alone, and its reading alone."""

from dataclasses import replace

import pytest
import torch

from vla import checkpoint
from vla.models.grounded import Model
from vla.tabletop.demonstrations import Demonstrations
from vla.training import heads, imitation, reading, setup
from vla.training.settings import Settings


@pytest.fixture(scope="module")
def settings(data, tmp_path_factory):
    """Settings of a tiny policy, trained for two steps."""
    start = Settings(
        architecture="grounded",
        preset="tiny",
        data=data,
        out=tmp_path_factory.mktemp("heads") / "start",
        steps=2,
        batch=4,
        commands=2,
        sentences=3,
        validation_share=0.3,
        heads=0,
        reading=0,
        threads=1,
    )
    imitation.train(start)
    return start


def loaded(settings):
    config, model = checkpoint.load(settings.out)
    assert isinstance(model, Model)
    return setup.batches_of(settings, Demonstrations.load(settings.data), config), model


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, old):
    """Parts of a model of which a weight is another one than it was."""
    return {
        name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(old[name], value)
    }


def test_heads_alone_learn(settings):
    batches, model = loaded(settings)
    old = weights(model)
    before, after = heads.train(batches, model, 60)
    assert after < 0.9 * before
    assert changed(model, old) == {"offset_head", "action_head", "done_head"}


def test_reading_alone_learns(settings):
    batches, model = loaded(settings)
    old = weights(model)
    reading.train(batches, model, 3)
    parts = {"text_encoder", "skill_pooling", "object_pooling", "skill_head", "name_head", "named_word"}
    assert changed(model, old) == parts
    assert not model.training
    _, twin = loaded(settings)
    reading.train(batches, twin, 3)
    assert not changed(twin, weights(model))


def test_stages_are_part_of_a_run(settings, tmp_path):
    imitation.train(replace(settings, out=tmp_path, heads=1.5, reading=1))
    _, model = loaded(replace(settings, out=tmp_path))
    _, start = loaded(settings)
    assert {"action_head", "skill_head"} <= changed(model, weights(start))
    assert "tower" not in changed(model, weights(start))


def test_decisions_are_those_of_the_whole_policy(settings):
    _, model = loaded(settings)
    images, state = torch.randn(3, 1, 3, 32, 32), torch.randn(3, 4)
    to_do, wanted = model.skill_table[[2]].expand(3, -1), model.object_table[[1]].expand(3, -1)
    command = torch.stack([wanted, to_do, torch.ones_like(to_do)], dim=1)
    with torch.inference_mode():
        answer = model.act(images, command, torch.ones(3, 3, dtype=torch.bool), state, torch.zeros(3, 0, 0))
        alone = model.decide(model.see(images, 4)[:, 1], state, to_do)
    torch.testing.assert_close(alone.actions, answer["actions"])


def test_the_least_confidence_is_in_the_middle_of_those_that_separate_best() -> None:
    acts = torch.tensor([True, True, False, False])
    assert imitation.least_confidence(torch.tensor([0.9, 0.605, 0.205, 0.1]), acts) == 0.41
    # One that can't be done is surer than one that can: from 0.11 to 0.3 and from 0.51 to 0.9 half are right.
    assert imitation.least_confidence(torch.tensor([0.9, 0.3, 0.5, 0.1]), acts) == 0.61
