"""Smaller models before they are compiled: weights set to zero, or hidden units taken out.

Zeros save space in an archive and nothing else: neither torch nor ONNX Runtime multiplies them any faster.
Units that are taken out shrink both matrices around them, and what multiplies with them.
"""

import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from export.errors import ExportError

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What may stand between two linear layers whose units are taken out: it treats every unit alike.
ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Dropout, nn.Identity)


@dataclass(frozen=True)
class Pruning:
    """How much of a model goes, as shares from 0 to below 1."""

    # Of the weights of linear layers and convolutions: the smallest become zero (Han et al. 2015,
    # arXiv 1506.02626).
    prune_weights: float = 0.0
    # Of the hidden units between two linear layers that follow each other: those of the least norms go.
    prune_units: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prune_weights", "prune_units"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a share from 0 to below 1, got {getattr(self, name)}")

    def __bool__(self) -> bool:
        return bool(self.prune_weights or self.prune_units)


@torch.no_grad()
def pruned(model: nn.Module, pruning: Pruning) -> nn.Module:
    """Return a pruned copy of a model.

    Raises:
        ExportError: it has nothing of what is to be taken away.
    """
    model = copy.deepcopy(model)
    if pruning.prune_units and not _take_units(model, pruning.prune_units):
        raise ExportError(
            "prune_units takes units between two nn.Linear of one nn.Sequential: there are none"
        )
    if pruning.prune_weights:
        _zero_weights(model, pruning.prune_weights)
    return model


def _zero_weights(model: nn.Module, share: float) -> None:
    weights = [module.weight for module in model.modules() if isinstance(module, WEIGHTED)]
    if not weights:
        raise ExportError("prune_weights takes weights of linear layers and convolutions: there are none")
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
    count = int(share * len(magnitudes))
    if count:
        limit = magnitudes.kthvalue(count).values
        for weight in weights:
            weight[weight.abs() <= limit] = 0.0


def _take_units(model: nn.Module, share: float) -> int:
    """Take the units out, and return how many."""
    taken = 0
    for sequence in model.modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        layers = [layer for layer in sequence if not isinstance(layer, ELEMENTWISE)]
        for first, second in pairwise(layers):
            if isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
                taken += _shrink(first, second, share)
    return taken


def _shrink(first: nn.Linear, second: nn.Linear, share: float) -> int:
    """Take the units with the least product of norms, in and out, out of two layers."""
    norms = first.weight.norm(dim=1) * second.weight.norm(dim=0)
    count = int(share * len(norms))
    kept = norms.argsort(descending=True, stable=True)[: len(norms) - count].sort().values
    first.weight = nn.Parameter(first.weight[kept], requires_grad=False)
    if first.bias is not None:
        first.bias = nn.Parameter(first.bias[kept], requires_grad=False)
    second.weight = nn.Parameter(second.weight[:, kept], requires_grad=False)
    first.out_features = second.in_features = len(kept)
    return count
