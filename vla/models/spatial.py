"""Reading positions and features out of a feature map by attention.

The soft arg-max is that of Levine et al. 2016, "End-to-End Training of Deep Visuomotor Policies": the mean
position under an attention distribution. It keeps where a thing is, which pooled features lose.
"""

import itertools

import torch
from torch import Tensor, nn


def grid(height: int, width: int) -> Tensor:
    """Return the cells' centres, row by row: float32 [height * width, 2], x and y in [-1, 1]."""
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


def attend(queries: Tensor, keys: Tensor) -> Tensor:
    """Return each query's attention over the cells.

    The scores are not divided by the root of D: from that flat a start, grounding takes far longer.

    Args:
        queries: float32 [B, Q, D]
        keys: float32 [B, C, P, D], the P cells of each of C cameras

    Returns:
        float32 [B, C, Q, P], sums to 1 over P
    """
    return torch.softmax(queries.unsqueeze(1) @ keys.transpose(-1, -2), dim=-1)


def read_out(weights: Tensor, values: Tensor, centres: Tensor, told: int) -> Tensor:
    """Return where the queries of each command look and what they see there.

    Args:
        weights: float32 [B, C, K * Q, P], attention of the Q queries of each of K commands
        values: float32 [B, C, P, V]
        centres: float32 [P, 2], from `grid`
        told: K

    Returns:
        float32 [B, K, C * Q * (2 + V)]
    """
    seen = torch.cat([weights @ centres, weights @ values], dim=-1)  # [B, C, K * Q, 2 + V]
    return seen.unflatten(2, (told, -1)).transpose(1, 2).flatten(2)


def multilayer(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    """Make a perceptron with GELU after each of its hidden layers."""
    widths = [inputs] + [hidden] * layers
    modules: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        modules += [nn.Linear(width, following), nn.GELU()]
    return nn.Sequential(*modules, nn.Linear(widths[-1], outputs))
