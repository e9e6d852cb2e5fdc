"""Pruning before export: which weights become zero, which units go, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPMLP

from archive.read import unpack
from export.errors import ExportError
from export.export import Options, export
from export.prune import Pruning, pruned
from vla_runtime.policy import Policy


def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(), nn.Linear(8, 3)).eval()


def test_smallest_weights_of_all_layers_become_zero() -> None:
    dense = model()

    sparse: Any = pruned(dense, Pruning(prune_weights=0.5))

    values = torch.cat([layer.weight.flatten() for layer in (dense[0], dense[3])])
    kept = torch.cat([layer.weight.flatten() for layer in (sparse[0], sparse[3])])
    limit = values.abs().median()
    assert torch.equal(kept, torch.where(values.abs() > limit, values, 0.0))
    assert (kept == 0).sum() == len(kept) // 2
    assert torch.equal(sparse[0].bias, dense[0].bias)
    assert (dense[0].weight != 0).all()  # the model itself is left alone


def test_units_that_matter_least_go_and_the_tensors_shrink() -> None:
    dense = model()
    with torch.no_grad():
        for unit in (2, 5):
            dense[0].weight[unit], dense[0].bias[unit] = 0.0, 0.0
    given = torch.randn(4, 6)

    small: Any = pruned(dense, Pruning(prune_units=0.25))

    assert [tuple(small[i].weight.shape) for i in (0, 3)] == [(6, 6), (3, 6)]
    torch.testing.assert_close(small(given), dense(given))  # the two did nothing
    smaller: Any = pruned(dense, Pruning(prune_units=0.5))
    assert smaller[0].weight.shape == (4, 6)
    assert not torch.allclose(smaller(given), dense(given))


def test_channels_between_two_convolutions_go() -> None:
    torch.manual_seed(0)
    dense: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        for channel in (1, 6):
            dense[0].weight[channel], dense[0].bias[channel] = 0.0, 0.0
    given = torch.randn(2, 3, 9, 9)

    small: Any = pruned(dense, Pruning(prune_units=0.25))

    assert [tuple(small[i].weight.shape) for i in (0, 2)] == [(6, 3, 3, 3), (4, 6, 3, 3)]
    assert (small[0].out_channels, small[2].in_channels) == (6, 6)
    torch.testing.assert_close(small(given), dense(given))  # the two did nothing


def test_channels_of_grouped_convolutions_stay() -> None:
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2))
    with pytest.raises(ExportError, match=r"^prune_units takes units between"):
        pruned(grouped, Pruning(prune_units=0.5))


def test_units_of_a_transformers_perceptron_go() -> None:
    torch.manual_seed(0)
    sizes = CLIPVisionConfig(hidden_size=4, intermediate_size=8, num_attention_heads=1)
    dense = CLIPMLP(sizes).eval()

    small: Any = pruned(dense, Pruning(prune_units=0.5))

    assert small.fc1.weight.shape == small.fc2.weight.T.shape == (4, 4)
    assert small(torch.randn(2, 4)).shape == (2, 4)


@pytest.mark.parametrize(
    ("module", "pruning", "message"),
    [
        (nn.Conv2d(1, 1, 1), Pruning(prune_units=0.5), "^prune_units takes units between two nn.Linear"),
        (nn.LayerNorm(3), Pruning(prune_weights=0.5), "^prune_weights takes weights of linear layers"),
    ],
)
def test_model_that_has_nothing_to_take_is_refused(module: nn.Module, pruning: Pruning, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        pruned(module, pruning)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_share_is_checked(share: float) -> None:
    with pytest.raises(ValueError, match=f"^prune_units is a share from 0 to below 1, got {share}$"):
        Pruning(prune_units=share)


def test_pruned_archive_says_so_and_answers_otherwise(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = Options(str(tiny_checkpoint), tmp_path / "vla.mar", buckets=(1, 2))
    dense = export(options)

    spec = export(dataclasses.replace(options, prune=Pruning(prune_weights=0.6)))

    assert spec.provenance["pruned"] == {"prune_weights": 0.6, "prune_units": 0.0}
    assert spec.provenance["parity"]["largest_difference"] <= 1e-4  # from what is left
    assert spec.example.actions != dense.example.actions
    Policy.load(unpack(options.output, tmp_path / "unpacked"))
