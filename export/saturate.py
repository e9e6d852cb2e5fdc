"""A policy that was trained on actions normalised by their bounds, and whose own actions end there too."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_runtime.actions import normalise
from vla_runtime.spec import ActionSpace, ContinuousSpace


class Saturating(nn.Module):
    """The same model, its actions cut at their bounds; a number that is not finite stays as it is.

    Demonstrations that run at full speed sit on a bound, and a regression overshoots it now and then. Such an
    action means the bound. Left to the safety limits, it would report an intervention with every answer.
    """

    def __init__(self, model: Any, space: ContinuousSpace) -> None:
        super().__init__()
        self.model = model
        self.low: Tensor
        self.high: Tensor
        # Beyond the dimensions nothing is cut: nobody reads it.
        low, high = (normalise(bound, space) for bound in (space.low, space.high))
        low[space.width :], high[space.width :] = -np.inf, np.inf
        self.register_buffer("low", torch.from_numpy(low))
        self.register_buffer("high", torch.from_numpy(high))
        self.eval()

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """See `vla_runtime.module.Module`."""
        return self.model.encode_command(input_ids, attention_mask)

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        """See `vla_runtime.module.Module`."""
        outputs = self.model.act(*inputs)
        return outputs | {"actions": outputs["actions"].clamp(self.low, self.high)}


def saturated(model: nn.Module, space: ActionSpace) -> nn.Module:
    """Return the model, saturating where its own bounds normalise its actions: others reach beyond."""
    if not isinstance(space, ContinuousSpace) or space.normalisation != "bounds" or space.statistics.low:
        return model
    if not any(dimension.relative for dimension in space.dimensions):
        return Saturating(model, space)
    return model
