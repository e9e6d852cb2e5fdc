"""A module of the archive's own code: built from it, filled from its weights, asked as the spec says."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_runtime.errors import SpecError
from vla_runtime.module import load_module, load_weights
from vla_runtime.spec import ArtifactSpec

SOURCE = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))

    def encode_command(self, input_ids, attention_mask):
        return {"mask": attention_mask, "words": input_ids * self.scale}

    def act(self, images, command, state, noise, *prefix):
        seen = images["front"].flatten(1).sum(1) + 10 * images["wrist"].flatten(1).sum(1)
        parts = [seen[:, None], command["words"], state, noise, *prefix]
        return {"actions": torch.cat([part.flatten(1).float() for part in parts], 1)}

def build(width):
    if width < 1:
        raise ValueError("no width")
    return Model(width)
"""
SCALE = torch.tensor([2.0, 3.0])


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An archive's folder; its package has another name in every test, as Python keeps what it imported."""
    (tmp_path / f"{request.node.name.partition('[')[0]}_code.py").write_text(SOURCE)
    save_file({"scale": SCALE}, tmp_path / "policy.safetensors")
    return tmp_path


def artifact(folder: Path, **changed: object) -> ArtifactSpec:
    (source,) = folder.glob("*_code.py")
    inputs = ("image.front", "image.wrist", "command.words", "command.mask", "state", "noise")
    fields: dict[str, object] = {
        "file": "policy.safetensors",
        "format": "eager",
        "factory": f"{source.stem}:build",
        "arguments": {"width": 2},
        "buckets": (1,),
        "outputs": ("actions",),
        "inputs": inputs,
        "command": ("words", "mask"),
    }
    return ArtifactSpec(**(fields | changed))  # pyright: ignore[reportArgumentType]


FRONT, WRIST = torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1) * 2
IDS, MASK = torch.tensor([[5, 7]]), torch.ones(1, 2)
STATE, NOISE = torch.tensor([[0.25]]), torch.tensor([[0.75]])


def test_what_the_spec_names_is_handed_on_by_its_name(folder: Path) -> None:
    module = load_module(folder, artifact(folder), "cpu")

    words, mask = module.encode_command(IDS, MASK)
    actions = module.act(FRONT, WRIST, words, mask, STATE, NOISE)["actions"]

    assert mask is MASK
    assert words.tolist() == [[10, 21]]
    assert actions.tolist() == [[63, 10, 21, 0.25, 0.75]]
    assert not actions.requires_grad


def test_what_the_spec_leaves_out_is_empty(folder: Path) -> None:
    inputs = ("image.front", "image.wrist", "command.words", "command.mask")
    module = load_module(folder, artifact(folder, inputs=inputs), "cpu")

    assert module.act(FRONT, WRIST, IDS * SCALE, MASK)["actions"].tolist() == [[63, 10, 21]]


def test_a_prefix_and_its_length_follow(folder: Path) -> None:
    spec = artifact(folder)
    module = load_module(folder, artifact(folder, inputs=(*spec.inputs, "prefix", "delay")), "cpu")

    prefix, delay = torch.tensor([[[4.0, 5.0]]]), torch.tensor([1])
    actions = module.act(FRONT, WRIST, IDS * SCALE, MASK, STATE, NOISE, prefix, delay[:, None])["actions"]

    assert actions.tolist() == [[63, 10, 21, 0.25, 0.75, 4, 5, 1]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arguments": {"width": 0}}, r"_code:build fails: no width$"),
        ({"arguments": {"width": 3}}, r"policy\.safetensors: scale has shape \[2\], the module's has \[3\]$"),
        (
            {"factory": "nothing_here:build"},
            r"^factory 'nothing_here:build' can't be imported from the archive: ",
        ),
        ({"factory": "json:build"}, r"^factory 'json:build' can't be imported from the archive: "),
        ({"file": "none.safetensors"}, r"none\.safetensors can't be loaded: it is missing$"),
    ],
)
def test_modules_that_cannot_be_built_are_refused(folder: Path, changed: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_module(folder, artifact(folder, **changed), "cpu")


def test_compiling_needs_a_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(
        SpecError, match=r"the archive is to be compiled by no-such-compiler, which is not here"
    ):
        load_module(folder, artifact(folder, compiled=True), "cpu")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 3)
        self.two = nn.Linear(2, 3)
        self.two.weight = self.one.weight


def saved(folder: Path, **tensors: Tensor) -> Path:
    save_file({name.replace("_", "."): tensor for name, tensor in tensors.items()}, folder / "w.safetensors")
    return folder / "w.safetensors"


def test_tied_weights_are_kept_once(tmp_path: Path) -> None:
    model = Tied()
    weight, bias = torch.arange(6.0).reshape(3, 2), torch.arange(3.0)

    load_weights(model, saved(tmp_path, one_weight=weight, one_bias=bias, two_bias=bias + 5))

    assert torch.equal(model.two.weight, weight)
    assert torch.equal(model.one.bias, bias)
    assert torch.equal(model.two.bias, bias + 5)


def test_weights_that_lack_or_add_something_are_refused(tmp_path: Path) -> None:
    bias = torch.zeros(3)
    with pytest.raises(
        SpecError, match=r"^w\.safetensors lacks weights of the module: one\.weight, two\.weight$"
    ):
        load_weights(Tied(), saved(tmp_path, one_bias=bias, two_bias=bias.clone()))
    more = {f"x{index}": bias.clone() for index in range(6)}
    with pytest.raises(
        SpecError, match=r"^w\.safetensors has weights that the module lacks: x0, x1, x2, x3, x4$"
    ):
        load_weights(Tied(), saved(tmp_path, **more))
    with pytest.raises(SpecError, match=r"^none can't be loaded: it is missing$"):
        load_weights(Tied(), tmp_path / "none")
