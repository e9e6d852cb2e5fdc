"""A source's module with the calling convention of every artifact: flat tensors in, in a declared order."""

from typing import Any

import torch
from torch import Tensor, nn

from export.batch import Batch, Layout
from export.errors import ExportError
from export.source import Source


class Flat(nn.Module):
    """`encode_command` returns a tuple, `act` takes tensors one by one; see `vla_runtime.module.Module`."""

    def __init__(self, source: Source, layout: Layout) -> None:
        super().__init__()
        self.model: Any = source.model
        self.layout = layout
        self.eval()

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Return the command's tensors [N, ...] in the order of the layout."""
        encoded = self.model.encode_command(input_ids, attention_mask)
        return tuple(encoded[name] for name in self.layout.command)

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Give the model its inputs by name, and empty tensors for what the policy does not have."""
        given = dict(zip(self.layout.inputs, inputs, strict=True))
        images = {camera.name: given[f"image.{camera.name}"] for camera in self.layout.cameras}
        command = {name: given[f"command.{name}"] for name in self.layout.command}
        empty = next(iter(images.values())).flatten(1)[:, :0]  # [B, 0], whatever B is
        prefix = [given[name] for name in ("prefix", "delay") if name in given]
        return self.model.act(images, command, given.get("state", empty), given.get("noise", empty), *prefix)


def differentiates(model: nn.Module) -> bool:
    """Whether a module takes gradients in `act`, by what it or a part of it says of itself."""
    return any(getattr(module, "differentiates", False) for module in model.modules())


@torch.inference_mode()
def flattened(source: Source) -> tuple[Flat, Layout]:
    """Return a source's module in the artifacts' convention, and its layout.

    Raises:
        ExportError: `encode_command` fails, or returns anything else than named tensors.
    """
    names: tuple[str, ...] = ()
    if source.tokenizer:
        weights = next(source.model.parameters(), None)
        device = str(weights.device) if weights is not None else "cpu"
        probe = Batch.random(Layout.of(source, ()), 2, 0, device)
        try:
            encoded: Any = source.model.encode_command(probe.ids, probe.mask)  # pyright: ignore[reportCallIssue]
        except Exception as error:
            raise ExportError(
                f"encode_command fails on ids and mask of shape {list(probe.ids.shape)}: {error}"
            ) from error
        if not isinstance(encoded, dict) or not all(isinstance(value, Tensor) for value in encoded.values()):
            raise ExportError(f"encode_command must return a dict of tensors, got {type(encoded).__name__}")
        for name, value in encoded.items():
            if value.ndim < 1 or len(value) != 2:
                raise ExportError(
                    f"encode_command returns {name!r} as {list(value.shape)} for 2 commands: the batch axis "
                    "must come first"
                )
        names = tuple(encoded)
    layout = Layout.of(source, names)
    return Flat(source, layout), layout
