"""A model to one TorchScript file with the two methods `encode_command` and `act`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.errors import ExportError
from vla.models import Sizes

# The batch size that is traced: one that no verified batch size equals, so that a baked one shows.
TRACED_BATCH = 2


@dataclass(frozen=True)
class Batch:
    """Random inputs of the common signature; see `vla.models`."""

    ids: torch.Tensor  # int64 [B, L]
    mask: torch.Tensor  # int64 [B, L]
    images: torch.Tensor  # float32 [B, C, 3, H, W]
    state: torch.Tensor  # float32 [B, S]
    noise: torch.Tensor  # float32 [B, T, A], or [B, 0, 0]

    @classmethod
    def random(cls, sizes: Sizes, count: int, seed: int, *, stochastic: bool = False) -> "Batch":
        """Draw `count` observations; commands have different lengths."""
        generator = torch.Generator().manual_seed(seed)
        length = sizes.context_length
        tokens = torch.randint(3, length + 1, (count, 1), generator=generator)
        shape = (count, sizes.horizon, sizes.action) if stochastic else (count, 0, 0)
        return cls(
            ids=torch.randint(0, sizes.vocabulary, (count, length), generator=generator),
            mask=(torch.arange(length) < tokens).long(),
            images=torch.randn(
                count, sizes.cameras, 3, sizes.image_size, sizes.image_size, generator=generator
            ),
            state=torch.rand(count, sizes.state, generator=generator) * 2 - 1,
            noise=torch.randn(shape, generator=generator),
        )

    def run(self, module: Any) -> dict[str, torch.Tensor]:
        """Encode the commands and act: the outputs of the common signature."""
        command, command_mask = module.encode_command(self.ids, self.mask)
        return module.act(self.images, command, command_mask, self.state, self.noise)


@torch.inference_mode()
def trace(model: Any, sizes: Sizes, path: Path, *, stochastic: bool = False) -> tuple[str, ...]:
    """Trace both methods of a `torch.nn.Module` in evaluation mode and save them.

    Returns:
        the names of the values that `act` returns, sorted

    Raises:
        ExportError: the model can't be traced.
    """
    batch = Batch.random(sizes, TRACED_BATCH, seed=0, stochastic=stochastic)
    try:
        command, command_mask = model.encode_command(batch.ids, batch.mask)
        methods = {
            "encode_command": (batch.ids, batch.mask),
            "act": (batch.images, command, command_mask, batch.state, batch.noise),
        }
        outputs = model.act(*methods["act"])
        # Not strict: `act` returns a dict. `verify` checks the trace, on more than trace_module would.
        traced = torch.jit.trace_module(model, methods, strict=False, check_trace=False)
    except Exception as error:
        raise ExportError(f"{type(model).__name__} can't be traced: {error}") from error
    torch.jit.save(traced, str(path))
    return tuple(sorted(outputs))
