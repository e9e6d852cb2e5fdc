"""Perceptrons, and the action head that is one."""

import itertools

import torch
from torch import Tensor, nn

from vla.models import Sizes


def mlp(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    """Make a perceptron of `layers` hidden layers, each with a GELU after it."""
    widths = [inputs] + [hidden] * layers
    modules: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        modules += [nn.Linear(width, following), nn.GELU()]
    return nn.Sequential(*modules, nn.Linear(widths[-1], outputs))


class ActionHead(nn.Module):
    """A perceptron from features to a chunk of actions."""

    def __init__(self, inputs: int, hidden: int, layers: int, sizes: Sizes) -> None:
        super().__init__()
        self.mlp = mlp(inputs, hidden, layers, sizes.horizon * sizes.action)
        self.chunk = (sizes.horizon, sizes.action)

    def forward(self, *features: Tensor) -> Tensor:
        """Turn features float32 [N, ...], `inputs` numbers a row in all, into a chunk float32 [N, T, A]."""
        return self.mlp(torch.cat(features, dim=-1)).unflatten(-1, self.chunk)
