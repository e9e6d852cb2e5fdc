"""int8: smaller, close, and honest about the difference; refused where torch can't run it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import Exported
from torch import nn

from archive.read import unpack
from export.errors import ExportError
from export.quantise import quantised
from export.target import Target
from vla_runtime.policy import Answer, Policy
from vla_runtime.spec import Precision

pytestmark = [
    # torch deprecates its 8-bit tensors as a whole, as it does TorchScript.
    pytest.mark.filterwarnings("ignore:torch.quantize_per:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
]
# Of an action of the tiny policy [m] and [1]: 1 % of its range.
BOUNDS = (0.0006, 0.02)
PRECISIONS: tuple[Precision, Precision] = ("float32", "int8")


def test_the_archive_says_how_far_its_actions_are_off(exported: Exported, tmp_path: Path) -> None:
    whole, rounded = (
        unpack(exported("torchscript", precision), tmp_path / precision) for precision in PRECISIONS
    )
    exact, policy = Policy.load(whole), Policy.load(rounded)
    spec, row = policy.spec, policy.example_row(rounded)
    rows = [{**row, "state": [0.05 * index, 0.5]} for index in range(4)]
    differences = []
    for one, other in zip(exact.infer(rows), policy.infer(rows), strict=True):
        assert isinstance(one, Answer)
        assert isinstance(other, Answer)
        differences.append(np.abs(one.chunk.actions - other.chunk.actions).max(0))

    loss = spec.provenance["precision_loss"]
    assert spec.artifact.precision == "int8"
    assert list(loss) == ["delta_x [m]", "gripper [1]"]
    assert 0 < loss["delta_x [m]"]["mean"] <= loss["delta_x [m]"]["largest"] <= BOUNDS[0]
    assert 0 < loss["gripper [1]"]["largest"] <= BOUNDS[1]
    assert np.max(differences) > 0
    assert (np.max(differences, axis=0) <= BOUNDS).all()


def test_linear_weights_take_a_quarter_of_the_memory() -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).eval()
    sizes = {}
    for name, module in (("float32", model), ("int8", quantised(model, Target(4)))):
        traced: Any = torch.jit.trace(module, torch.zeros(1, 256))
        sizes[name] = len(traced.save_to_buffer())
    assert sizes["int8"] < 0.3 * sizes["float32"]
    assert model[0].weight.dtype == torch.float32  # the model itself is left alone


@pytest.mark.parametrize(
    ("target", "named"),
    [(Target(4, format="pt2"), "'pt2' and 'cpu'"), (Target(4, device="cuda"), "'torchscript' and 'cuda'")],
)
def test_what_torch_cannot_run_is_refused(target: Target, named: str) -> None:
    expected = f"^precision 'int8' needs format 'torchscript' and device 'cpu', got {named}$"
    with pytest.raises(ExportError, match=expected):
        quantised(nn.Linear(2, 2), target)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(ExportError, match=r"quantises linear layers, and this model has none$"):
        quantised(nn.Conv2d(3, 3, 1), Target(4))
