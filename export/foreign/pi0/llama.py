"""Llama's layers as SmolVLA uses them: a prefix once, then an expert that attends to its keys and values.

After Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models". The names of the parameters
are transformers'.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .gemma import MLP, KeysValues, rotated


@dataclass(frozen=True)
class Sizes:
    """The sizes of a stack of layers."""

    width: int
    depth: int
    mlp: int
    # Heads of the queries; as many of them share each head of keys and values (Ainslie et al. 2023).
    heads: int
    kv_heads: int
    head_dim: int
    # Of the normalisation.
    epsilon: float


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.epsilon = sizes.epsilon
        self.weight = nn.Parameter(torch.ones(sizes.width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return float32 [..., width]."""
        values = tokens.float()
        values = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + self.epsilon)
        return values * self.weight.float()


class Attention(nn.Module):
    """Attention of tokens to themselves, and to keys and values from before."""

    def __init__(self, sizes: Sizes, seen: int | None = None) -> None:
        """Build the projections; keys and values come from something `seen` wide, by default the tokens."""
        super().__init__()
        self.head_dim, self.shared = sizes.head_dim, sizes.heads // sizes.kv_heads
        queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        self.q_proj = nn.Linear(sizes.width, queries, bias=False)
        self.k_proj = nn.Linear(seen or sizes.width, keys, bias=False)
        self.v_proj = nn.Linear(seen or sizes.width, keys, bias=False)
        self.o_proj = nn.Linear(queries, sizes.width, bias=False)

    def forward(
        self, tokens: Tensor, rotation: KeysValues, mask: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """Return what the tokens [B, Q, width] find, and keys and values [B, kv_heads, past + Q, head_dim].

        The mask is bool [B, 1, 1 or Q, past + Q].
        """
        keys = rotated(self._heads(self.k_proj(tokens)), rotation)
        values = self._heads(self.v_proj(tokens)).type_as(keys)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        return self._found(tokens, rotation, mask, keys, values), (keys, values)

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, heads, Q, head_dim]

    def _found(
        self, tokens: Tensor, rotation: KeysValues, mask: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        # A rotation is float32, and attention wants one type.
        queries = rotated(self._heads(self.q_proj(tokens)), rotation).type_as(keys)
        shared = (
            part.type_as(keys).unsqueeze(2).expand(-1, -1, self.shared, -1, -1).flatten(1, 2)
            for part in (keys, values)
        )
        found = functional.scaled_dot_product_attention(queries, *shared, attn_mask=mask)
        return self.o_proj(found.transpose(1, 2).flatten(2))


class CrossAttention(Attention):
    """Attention of tokens to keys and values from before alone, which it projects again."""

    def forward(
        self, tokens: Tensor, rotation: KeysValues, mask: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """Return what the tokens [B, Q, width] find, and the keys and values it was given.

        The mask is bool [B, 1, 1 or Q, past].
        """
        assert past is not None
        before = (part.transpose(1, 2).flatten(2) for part in past)
        keys, values = (
            self._heads(projection(part))
            for projection, part in zip((self.k_proj, self.v_proj), before, strict=True)
        )
        return self._found(tokens, rotation, mask, keys, values), past


class Layer(nn.Module):
    """Attention and MLP, each on normalised tokens and added to them."""

    def __init__(self, sizes: Sizes, attention: Attention) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(sizes)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(sizes)
        self.mlp = MLP(sizes.width, sizes.mlp, functional.silu)

    @property
    def crosses(self) -> bool:
        """Whether it attends to what came before alone."""
        return isinstance(self.self_attn, CrossAttention)

    def forward(
        self, tokens: Tensor, rotation: KeysValues, mask: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """Return tokens [B, Q, width], and keys and values; see `Attention`."""
        found, kept = self.self_attn(self.input_layernorm(tokens), rotation, mask, past)
        tokens = tokens + found
        return tokens + self.mlp(self.post_attention_layernorm(tokens)), kept
