"""How far a thing is from the hand, told finely where it is near: there grasps are decided."""

import torch
from torch import Tensor

# Unit of a place [m]: about what the arm reaches.
REACH = 0.2
# Offsets below this are told apart finely [m].
NEAR = 0.03


def missed_offset(offset: Tensor, true: Tensor) -> Tensor:
    """Return how far offsets [N, 3], in units of `REACH`, are off: float32 [N], most where they are small."""
    return (scales(offset) - scales(true)).square().mean(-1)


def scales(offset: Tensor) -> Tensor:
    """Return offsets [N, 3] in units of `REACH` as they are and, next to them, those near zero finely."""
    return torch.cat([offset, torch.tanh(offset * (REACH / NEAR))], dim=-1)
