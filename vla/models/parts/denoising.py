"""What generative action heads share: the encoding of a time, the denoising network, a noise schedule."""

import math

import torch
from torch import Tensor, nn

from vla.models import Sizes
from vla.models.parts.attention import Block
from vla.models.parts.mlp import mlp

# Frequencies that a time is encoded by; the highest is 2 ** (FREQUENCIES - 1) half cycles over the schedule.
FREQUENCIES = 8


class TimeFeatures(nn.Module):
    """A time as sines and cosines, the Fourier features of Tancik et al. 2020.

    "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains".
    """

    size = 2 * FREQUENCIES

    def __init__(self) -> None:
        super().__init__()
        self.frequencies: Tensor
        frequencies = math.pi * 2.0 ** torch.arange(FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        """Encode float32 [...] in [0, 1] to float32 [..., size]."""
        angles = time.unsqueeze(-1) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Denoiser(nn.Module):
    """A transformer over a noisy chunk, from it, the time and the condition to a chunk.

    After Peebles & Xie 2023, "Scalable Diffusion Models with Transformers" (github.com/facebookresearch/DiT):
    the condition, with the time added, modulates every block. The condition is one vector, so that a step of
    the sampler costs T tokens, whatever the pictures' size. What the chunk means, the clean one for instance,
    is for the caller to train.
    """

    def __init__(self, sizes: Sizes, *, width: int, heads: int, mlp_width: int, layers: int) -> None:
        super().__init__()
        self.action_projection = nn.Linear(sizes.action, width)
        self.positional_embedding = nn.Parameter(0.02 * torch.randn(sizes.horizon, width))
        self.time_features = TimeFeatures()
        self.time_mlp = mlp(TimeFeatures.size, width, 1, width)
        self.condition_mlp = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.blocks = nn.ModuleList([Block(width, heads, mlp_width, conditioned=True) for _ in range(layers)])
        self.output_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sizes.action))

    def forward(self, chunk: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return float32 [N, T, A].

        Args:
            chunk: float32 [N, T, A]
            time: float32 [N], in [0, 1]
            condition: float32 [N, width]
        """
        condition = self.condition_mlp(condition + self.time_mlp(self.time_features(time))).unsqueeze(1)
        tokens = self.action_projection(chunk) + self.positional_embedding
        for block in self.blocks:
            tokens = block(tokens, condition=condition)
        return self.output_head(tokens)


def cosine_schedule(levels: int) -> Tensor:
    """Return the share of the signal's variance that each level leaves: float32 [levels], falling to ~0.

    After Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models".
    """
    at = torch.arange(levels + 1, dtype=torch.float64) / levels
    share = torch.cos((at + 0.008) / 1.008 * math.pi / 2).square()
    kept = (share[1:] / share[:-1]).clamp_min(0.001)
    return kept.cumprod(0).float()
