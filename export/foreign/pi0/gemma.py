"""Gemma's layers as pi0 uses them: a prefix once, then suffixes that attend to its keys and values.

After Gemma Team 2024, "Gemma: Open Models Based on Gemini Research and Technology". The names of the
parameters are transformers'.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6
# Longest wavelength of the rotary embedding, in turns of 2 pi tokens.
BASE = 10000.0
# Keys and values of one layer: float32 [B, 1, L, head_dim] each.
KeysValues = tuple[Tensor, Tensor]
GELU = partial(functional.gelu, approximate="tanh")


@dataclass(frozen=True)
class Sizes:
    """The sizes of a stack of layers. All heads share one of keys and values (Shazeer 2019)."""

    width: int
    depth: int
    mlp: int
    heads: int
    head_dim: int


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019) with Gemma's weight, an offset from 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return float32 [..., width]."""
        return _normalised(tokens) * (1 + self.weight.float())


class AdaptiveRMSNorm(nn.Module):
    """Root mean square normalisation that a condition scales, shifts and gates, as in pi0.5.

    After Peebles and Xie 2023, "Scalable Diffusion Models with Transformers" (adaptive layer norm).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)

    def forward(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens [..., width], and the gate of what is computed from them [width], both float32.

        The condition is float32 [width].
        """
        scale, shift, gate = self.dense(condition).float().chunk(3, -1)
        return _normalised(tokens) * (1 + scale) + shift, gate


def _normalised(tokens: Tensor) -> Tensor:
    values = tokens.float()
    return values * torch.rsqrt(values.square().mean(-1, keepdim=True) + EPSILON)


class Attention(nn.Module):
    """Attention of tokens to themselves, and to keys and values from before."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.head_dim = sizes.heads, sizes.head_dim
        self.q_proj = nn.Linear(sizes.width, sizes.heads * sizes.head_dim, bias=False)
        self.k_proj = nn.Linear(sizes.width, sizes.head_dim, bias=False)
        self.v_proj = nn.Linear(sizes.width, sizes.head_dim, bias=False)
        self.o_proj = nn.Linear(sizes.heads * sizes.head_dim, sizes.width, bias=False)

    def forward(
        self, tokens: Tensor, rotation: KeysValues, mask: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """Return what the tokens [B, Q, width] find, and the keys and values [B, 1, past + Q, head_dim].

        The mask is bool [B, 1, 1 or Q, past + Q].
        """
        queries, keys, values = (
            projection(tokens).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, heads, Q, head_dim]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries, keys = rotated(queries, rotation), rotated(keys, rotation)
        # A rotation is float32, and attention wants one type.
        queries, values = queries.type_as(keys), values.type_as(keys)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        shared = (part.expand(-1, self.heads, -1, -1) for part in (keys, values))
        found = functional.scaled_dot_product_attention(queries, *shared, attn_mask=mask)
        return self.o_proj(found.transpose(1, 2).flatten(2)), (keys, values)


class MLP(nn.Module):
    """Two projections, one of which gates the other, and one back.

    After Shazeer 2020, "GLU Variants Improve Transformer".
    """

    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [..., width]."""
        return self.down_proj(self.activation(self.gate_proj(tokens)) * self.up_proj(tokens))


class Layer(nn.Module):
    """Attention and MLP, each on normalised tokens and added to them."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(sizes.width)
        self.self_attn = Attention(sizes)
        self.post_attention_layernorm = RMSNorm(sizes.width)
        self.mlp = MLP(sizes.width, sizes.mlp, GELU)

    def forward(
        self, tokens: Tensor, rotation: KeysValues, mask: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """Return tokens [B, Q, width], and keys and values; see `Attention`."""
        found, kept = self.self_attn(self.input_layernorm(tokens), rotation, mask, past)
        tokens = tokens + found
        return tokens + self.mlp(self.post_attention_layernorm(tokens)), kept


class AdaptiveLayer(nn.Module):
    """A layer whose norms follow a condition, which also gates what attention and MLP add."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.input_layernorm = AdaptiveRMSNorm(sizes.width)
        self.self_attn = Attention(sizes)
        self.post_attention_layernorm = AdaptiveRMSNorm(sizes.width)
        self.mlp = MLP(sizes.width, sizes.mlp, GELU)

    def forward(
        self, tokens: Tensor, rotation: KeysValues, mask: Tensor, past: KeysValues | None, condition: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """Return tokens [B, Q, width], and keys and values; the condition is float32 [width]."""
        values, gate = self.input_layernorm(tokens, condition)
        found, kept = self.self_attn(values, rotation, mask, past)
        tokens = tokens + found * gate
        values, gate = self.post_attention_layernorm(tokens, condition)
        return tokens + self.mlp(values) * gate, kept


class Gemma(nn.Module):
    """A stack of layers, without embedding and without the last norm."""

    def __init__(self, sizes: Sizes, *, adaptive: bool = False) -> None:
        """Build the layers; with `adaptive` they take a condition."""
        super().__init__()
        self.head_dim = sizes.head_dim
        kind = AdaptiveLayer if adaptive else Layer
        self.layers = nn.ModuleList(kind(sizes) for _ in range(sizes.depth))

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        past: list[KeysValues] | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Run all layers.

        Args:
            tokens: float32 [B, Q, width]
            positions: int64 [B, Q]
            mask: what each token attends to, bool [B, 1, 1 or Q, past + Q]
            past: keys and values of earlier tokens, by layer
            condition: of adaptive layers, float32 [width]

        Returns:
            tokens float32 [B, Q, width], and the keys and values of all tokens, by layer
        """
        rotation = rotations(positions, self.head_dim)
        given = () if condition is None else (condition,)
        kept: list[KeysValues] = []
        for place, layer in enumerate(self.layers):
            tokens, found = layer(tokens, rotation, mask, past[place] if past else None, *given)
            kept.append(found)
        return tokens, kept


def rotations(positions: Tensor, head_dim: int) -> KeysValues:
    """Return cosines and sines of the rotary embedding (Su et al. 2021): float32 [B, 1, Q, head_dim] each."""
    places = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
    angles = positions[:, None, :, None] / BASE**places
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotated(heads: Tensor, rotation: KeysValues) -> Tensor:
    """Rotate the two halves of queries or keys [B, heads, Q, head_dim] by their positions."""
    cosines, sines = rotation
    first, second = heads.chunk(2, -1)
    return heads * cosines + torch.cat([-second, first], -1) * sines
