"""Draws a flow's chunk towards given first actions, without training for it.

After Black, Galliker & Levine 2025, "Real-Time Execution of Action Chunking Flow Policies" (arXiv
2506.07339). At each step of the flow the chunk that the velocity leads to is compared with the given actions,
and the difference corrects the velocity. `vjp` carries it back through the velocity, by a vector-Jacobian
product; `identity` takes the Jacobian for 1 and needs no gradient.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["identity", "vjp"]
# Largest weight of a correction.
MOST = 10.0


def weight(time: float) -> float:
    """Return how much a correction counts at a time of the flow, 0 (noise) to 1 (chunk)."""
    left = 1 - time
    if time <= 0:
        return MOST
    return min(left / time * (left**2 + time**2) / left**2, MOST)


def guided(
    kind: Kind,
    velocity: Callable[[Tensor], Tensor],
    chunk: Tensor,
    time: float,
    *,
    prefix: Tensor,
    known: Tensor,
) -> Tensor:
    """Return the velocity [B, T, A] with its correction; rows without given actions get none.

    Args:
        kind: how the difference becomes a correction
        velocity: of a chunk at this time
        chunk: float32 [B, T, A]
        time: of the flow, below 1
        prefix: the given actions, float32 [B, T, A]
        known: which of them are given, bool [B, T]
    """
    if kind == "identity":
        change = velocity(chunk)
        return change + weight(time) * _error(chunk + (1 - time) * change, prefix, known)
    with torch.enable_grad():
        free = chunk.detach().requires_grad_()
        change = velocity(free)
        clean = free + (1 - time) * change
        (correction,) = torch.autograd.grad(clean, free, _error(clean.detach(), prefix, known))
    return change.detach() + weight(time) * correction


def _error(clean: Tensor, prefix: Tensor, known: Tensor) -> Tensor:
    return torch.where(known.unsqueeze(-1), prefix - clean, torch.zeros_like(clean))
