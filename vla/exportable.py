"""A model of `vla.models` as export takes it, and as a worker builds it anew from plain values."""

from typing import Any

import torch
from torch import Tensor, nn

from vla.models import AnyModel, Sizes
from vla.models import build as build_model


class Exportable(nn.Module):
    """An `export.source.ExportableModel`: the model takes the pictures of its cameras as one tensor."""

    def __init__(self, model: AnyModel) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """See `vla.models`."""
        command, command_mask = self.model.encode_command(input_ids, attention_mask)
        return {"command": command, "command_mask": command_mask}

    def act(
        self,
        images: dict[str, Tensor],
        command: dict[str, Tensor],
        state: Tensor,
        noise: Tensor,
        *prefix: Tensor,
    ) -> dict[str, Tensor]:
        """See `vla.models`; `prefix` and `delay` come for a model with a `max_delay`."""
        pictures = torch.stack(list(images.values()), dim=1)
        rest = (command["command"], command["command_mask"], state, noise, *prefix)
        return self.model.act(pictures, *rest)


def build(architecture: str, config: dict[str, Any], sizes: dict[str, int]) -> Exportable:
    """Build a model without its weights: `config` are values of its `Config`, `sizes` those of `Sizes`."""
    return Exportable(build_model(architecture, config, Sizes(**sizes)))
