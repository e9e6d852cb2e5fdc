"""Low-rank adapters: what they train, what they leave alone, and that merging them changes no answer."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

from vla import checkpoint
from vla.models import Sizes, build, module_of
from vla.training import lora
from vla.training.imitation import train
from vla.training.settings import Settings

SIZES = Sizes(cameras=1, image_size=96, context_length=16, vocabulary=49408, state=4, horizon=4, action=3)
WITH_TRANSFORMERS = (
    "clip",
    "vl_transformer",
    "rt2",
    "cross_modal",
    "unified",
    "flow",
    "diffusion",
    "efficient",
)


def made(architecture):
    torch.manual_seed(0)
    model = build(architecture, asdict(module_of(architecture).Config.tiny()), SIZES)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def answer(model):
    random = torch.Generator().manual_seed(1)
    images = torch.randn(3, 1, 3, 96, 96, generator=random)
    ids = torch.randint(0, 40_000, (3, 16), generator=random)
    noise = torch.randn(3, 4, 3, generator=random)
    with torch.inference_mode():
        command = model.encode_command(ids, torch.ones_like(ids))
        return model.act(images, *command, torch.randn(3, 4, generator=random), noise)


@pytest.mark.parametrize("architecture", WITH_TRANSFORMERS)
def test_merging_changes_no_answer_and_leaves_an_ordinary_model(architecture):
    model = made(architecture)
    names, before = set(model.state_dict()), answer(model)
    trained = lora.adapt(model, 2)
    adapters = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert 0 < trained < sum(parameter.numel() for parameter in model.parameters()) / 4
    assert all("lora_" in name for name in adapters)
    torch.testing.assert_close(answer(model)["actions"], before["actions"], atol=1e-6, rtol=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name in adapters:
            nn.init.normal_(parameter, std=0.3)
    apart = answer(model)
    lora.merge(model)
    merged = answer(model)
    assert set(model.state_dict()) == names
    assert max((apart[name] - before[name]).abs().max() for name in before) > 1e-3
    for name in before:
        torch.testing.assert_close(merged[name], apart[name], atol=1e-6, rtol=1e-5)


def test_a_model_without_transformer_is_refused():
    with pytest.raises(
        ValueError, match=r"^lora needs an architecture with transformer blocks, such as clip"
    ):
        lora.adapt(made("early_fusion"), 2)


@pytest.mark.parametrize("values", [{"lora": -1}, {"lora": 4}])
def test_a_rank_needs_a_start(values):
    with pytest.raises(ValueError, match="lora must be 0, or a rank with a --start"):
        Settings(**values)


def test_a_run_trains_adapters_alone_and_goes_on_where_it_was_interrupted(data, tmp_path):
    common = {"architecture": "rt2", "preset": "tiny", "data": data, "batch": 4, "commands": 2, "threads": 1}
    train(Settings(**common, out=tmp_path / "base", steps=4, validate_every=2))
    learned = {"start": tmp_path / "base", "lora": 2, "steps": 6, "validate_every": 2}
    train(Settings(**common, **learned, out=tmp_path / "whole"))
    train(Settings(**common, **learned, out=tmp_path / "two"), stop_after=4)
    train(Settings(**common, **learned, out=tmp_path / "two", resume=True))

    _, base = checkpoint.load(tmp_path / "base")
    _, whole = checkpoint.load(tmp_path / "whole")
    _, two = checkpoint.load(tmp_path / "two")
    adapted = {f"{name}.weight" for name in lora.transformer_layers(base)}
    for name, value in base.state_dict().items():
        assert torch.equal(whole.state_dict()[name], value) == (name not in adapted), name
        assert torch.equal(whole.state_dict()[name], two.state_dict()[name]), name
