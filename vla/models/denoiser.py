"""A transformer over the actions of a noisy chunk: what generative action heads call at every step.

Diffusion transformer (Peebles & Xie 2023, github.com/facebookresearch/DiT): the condition, with the time
added, scales and shifts what every block reads and gates what it adds. The condition is one vector, so that a
step of the sampler costs T tokens, whatever the pictures' size.
"""

import math

import torch
from torch import Tensor, nn

from vla.models import Sizes
from vla.models.blocks import Attention
from vla.models.spatial import multilayer

# Sines and cosines that a time is told by, and the highest frequency [cycles over the whole schedule].
WAVES, HIGHEST = 8, 128.0


class Block(nn.Module):
    """Self-attention, then a perceptron, both modulated by the condition."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.think = multilayer(width, inner, 1, width)
        self.normalise = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 6 * width)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return tokens float32 [N, T, D] changed under a condition float32 [N, 1, D]."""
        shift, scale, gate, shift_after, scale_after, gate_after = self.modulate(condition).chunk(6, dim=-1)
        read = self.normalise(tokens) * (1 + scale) + shift
        tokens = tokens + gate * self.attention(read, read)[0]
        read = self.normalise(tokens) * (1 + scale_after) + shift_after
        return tokens + gate_after * self.think(read)


class Denoiser(nn.Module):
    """From a noisy chunk, the time and the condition to a chunk: of what, is for the caller to train."""

    def __init__(self, sizes: Sizes, *, width: int, heads: int, inner: int, layers: int) -> None:
        super().__init__()
        self.read = nn.Linear(sizes.action, width)
        self.places = nn.Parameter(0.02 * torch.randn(sizes.horizon, width))
        self.clock = multilayer(2 * WAVES, width, 1, width)
        self.combine = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.blocks = nn.ModuleList([Block(width, heads, inner) for _ in range(layers)])
        self.answer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sizes.action))
        self.waves: Tensor
        frequencies = math.pi * torch.logspace(0, math.log2(HIGHEST), WAVES, base=2)
        self.register_buffer("waves", frequencies, persistent=False)

    def forward(self, chunk: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return float32 [N, T, A].

        Args:
            chunk: float32 [N, T, A]
            time: float32 [N], in [0, 1]
            condition: float32 [N, width]
        """
        angles = time.unsqueeze(-1) * self.waves  # [N, WAVES]
        clock = self.clock(torch.cat([angles.sin(), angles.cos()], dim=-1))
        condition = self.combine(condition + clock).unsqueeze(1)
        tokens = self.read(chunk) + self.places
        for block in self.blocks:
            tokens = block(tokens, condition)
        return self.answer(tokens)
