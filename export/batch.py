"""Inputs of the common signature, to trace with and to compare on: random ones, a checkpoint's example."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image

from export.target import Target
from vla.models import Sizes
from vla.training import checkpoint
from vla_runtime.actions import normalise
from vla_runtime.preprocessing import normalise_pictures, picture


@dataclass(frozen=True)
class Batch:
    """Inputs of the common signature; see `vla.models`."""

    ids: torch.Tensor  # int64 [B, L]
    mask: torch.Tensor  # int64 [B, L]
    images: torch.Tensor  # float32 [B, C, 3, H, W]
    state: torch.Tensor  # float32 [B, S]
    noise: torch.Tensor  # float32 [B, T, A], or [B, 0, 0]

    @classmethod
    def random(cls, sizes: Sizes, count: int, seed: int, target: Target) -> "Batch":
        """Draw `count` observations on the target's device; commands have different lengths."""
        generator = torch.Generator().manual_seed(seed)
        length = sizes.context_length
        tokens = torch.randint(3, length + 1, (count, 1), generator=generator)
        return cls(
            ids=torch.randint(0, sizes.vocabulary, (count, length), generator=generator),
            mask=(torch.arange(length) < tokens).long(),
            images=torch.randn(
                count, sizes.cameras, 3, sizes.image_size, sizes.image_size, generator=generator
            ),
            state=torch.rand(count, sizes.state, generator=generator) * 2 - 1,
            noise=_noise(sizes, count, generator, target),
        ).to(target.device)

    @classmethod
    def example(cls, folder: Path, config: checkpoint.Config, target: Target) -> "Batch":
        """Read a checkpoint's example as one observation, preprocessed as the server does it."""
        source = msgspec.json.decode((folder / checkpoint.EXAMPLE).read_bytes(), type=checkpoint.Example)
        pictures = np.stack(
            [picture(Image.open(folder / source.images[camera.name]), camera) for camera in config.cameras]
        )
        ids, mask = config.command_tokenizer()(source.command)
        state = np.array(source.state if config.state else (), np.float32)
        if config.state:
            state = normalise(state, config.state)
        return cls(
            ids=torch.from_numpy(ids)[None],
            mask=torch.from_numpy(mask)[None],
            images=normalise_pictures(torch.from_numpy(pictures)[None], config.cameras),
            state=torch.from_numpy(state)[None],
            noise=_noise(config.sizes(), 1, torch.Generator().manual_seed(0), target),
        ).to(target.device)

    def to(self, device: str) -> "Batch":
        """Copy the inputs to a device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def run(self, module: Any) -> dict[str, torch.Tensor]:
        """Encode the commands and act: the outputs of the common signature."""
        command, command_mask = module.encode_command(self.ids, self.mask)
        return module.act(self.images, command, command_mask, self.state, self.noise)

    def calls(self, module: Any) -> dict[str, tuple[torch.Tensor, ...]]:
        """Return the arguments of both methods, contiguous, the encoded commands among them."""
        command, command_mask = module.encode_command(self.ids, self.mask)
        return {
            "encode_command": (self.ids, self.mask),
            "act": (self.images, command.contiguous(), command_mask.contiguous(), self.state, self.noise),
        }


def _noise(sizes: Sizes, count: int, generator: torch.Generator, target: Target) -> torch.Tensor:
    shape = (count, sizes.horizon, sizes.action) if target.stochastic else (count, 0, 0)
    return torch.randn(shape, generator=generator)
