"""A policy that was trained on actions normalised by their bounds, and whose own actions end there too."""

from typing import Any

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
        self.register_buffer("low", torch.from_numpy(normalise(space.low, space)))
        self.register_buffer("high", torch.from_numpy(normalise(space.high, space)))
        self.eval()

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `vla.models`."""
        return self.model.encode_command(input_ids, attention_mask)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """See `vla.models`."""
        outputs = self.model.act(images, command, command_mask, state, noise)
        return outputs | {"actions": outputs["actions"].clamp(self.low, self.high)}


def saturated(model: nn.Module, space: ActionSpace) -> nn.Module:
    """Return the model, saturating where bounds normalise its actions: other statistics may reach beyond."""
    if isinstance(space, ContinuousSpace) and space.normalisation == "bounds":
        return Saturating(model, space)
    return model
