"""Training the heads of a `grounded` alone."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from vla import checkpoint
from vla.models.grounded import Model
from vla.tabletop.collection import Collection, collect
from vla.training import heads, imitation
from vla.training.settings import Settings
from vla_runtime.errors import SpecError


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings whose start is a tiny policy, trained for two steps."""
    folder = tmp_path_factory.mktemp("heads")
    collect(Collection(out=folder / "data", episodes=6, horizon=2, image_size=32, workers=1))
    start = Settings(
        architecture="grounded",
        preset="tiny",
        data=folder / "data",
        out=folder / "start",
        steps=2,
        batch=4,
        commands=2,
        sentences=3,
        threads=1,
    )
    imitation.train(start)
    return heads.HeadSettings(
        start=start.out, data=start.data, out=folder / "out", steps=60, batch=32, validation_share=0.3
    )


def test_heads_alone_learn(settings):
    before, after = heads.train(settings)
    assert after < 0.9 * before
    old, new = (load_file(folder / "model.safetensors") for folder in (settings.start, settings.out))
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"offset_head", "action_head"}
    config, _ = checkpoint.load(settings.out)
    assert config == checkpoint.load(settings.start)[0]


def test_decisions_are_those_of_the_whole_policy(settings):
    _, model = checkpoint.load(settings.start)
    assert isinstance(model, Model)
    images, state = torch.randn(3, 1, 3, 32, 32), torch.randn(3, 4)
    to_do, wanted = model.skill_table[[2]].expand(3, -1), model.object_table[[1]].expand(3, -1)
    command = torch.stack([wanted, to_do, torch.ones_like(to_do)], dim=1)
    with torch.inference_mode():
        answer = model.act(images, command, torch.ones(3, 3, dtype=torch.bool), state, torch.zeros(3, 0, 0))
        alone = model.decide(model.see(images, 4)[:, 1], state, to_do)
    torch.testing.assert_close(alone.actions, answer["actions"])


def test_other_architectures_are_refused(settings, tmp_path):
    other = Settings(
        preset="tiny", data=settings.data, out=tmp_path / "other", steps=1, batch=2, commands=1, threads=1
    )
    imitation.train(other)
    with pytest.raises(SpecError, match="is a command_attention: only grounded has these heads"):
        heads.train(replace(settings, start=other.out))
