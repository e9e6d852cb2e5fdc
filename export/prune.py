"""Smaller models before they are compiled: weights set to zero, or hidden units taken out.

Zeros save space in an archive and nothing else: neither torch nor ONNX Runtime multiplies them any faster.
Units and channels that are taken out shrink both layers around them, and what multiplies with them, as in Li
et al. 2016, "Pruning Filters for Efficient ConvNets", arXiv 1608.08710.
"""

import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from export.errors import ExportError

Layer = nn.Linear | nn.Conv2d
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What may stand between two linear layers whose units are taken out: it treats every unit alike.
ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Dropout, nn.Identity)


@dataclass(frozen=True)
class Pruning:
    """How much of a model goes, as shares from 0 to below 1."""

    # Of the weights of linear layers and convolutions: the smallest become zero (Han et al. 2015,
    # arXiv 1506.02626).
    prune_weights: float = 0.0
    # Of the hidden units between two linear layers that follow each other, and of the channels between two
    # convolutions: those of the least norms go.
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
            "prune_units takes units between two nn.Linear, or two nn.Conv2d, of one nn.Sequential, or "
            "between fc1 and fc2: there are none"
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
    return sum(_shrink(first, second, share) for first, second in _pairs(model))


def _pairs(model: nn.Module) -> list[tuple[Layer, Layer]]:
    """Return layers between which units are hidden from all others: in a sequence, or fc1 and fc2."""
    found: list[tuple[Layer, Layer]] = []
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            layers = [layer for layer in module if not isinstance(layer, ELEMENTWISE)]
        else:  # transformers' name for a perceptron's two layers
            layers = [getattr(module, name, None) for name in ("fc1", "fc2")]
        for first, second in pairwise(layers):
            if isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
                found.append((first, second))
            elif isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
                found += [(first, second)] if first.groups == second.groups == 1 else []
    return found


def _shrink(first: Layer, second: Layer, share: float) -> int:
    """Take the units with the least product of norms, in and out, out of two layers."""
    norms = first.weight.flatten(1).norm(dim=1) * second.weight.transpose(0, 1).flatten(1).norm(dim=1)
    count = int(share * len(norms))
    kept = norms.argsort(descending=True, stable=True)[: len(norms) - count].sort().values
    first.weight = nn.Parameter(first.weight[kept], requires_grad=False)
    if first.bias is not None:
        first.bias = nn.Parameter(first.bias[kept], requires_grad=False)
    second.weight = nn.Parameter(second.weight[:, kept], requires_grad=False)
    if isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
        first.out_features = second.in_features = len(kept)
    elif isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
        first.out_channels = second.in_channels = len(kept)
    return count
