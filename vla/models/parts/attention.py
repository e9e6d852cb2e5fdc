"""Multi-head attention and the transformer block, written out so that they trace and can return weights.

`torch.nn.TransformerEncoderLayer` takes another path in evaluation mode, which neither `torch.jit.trace` nor
`torch.export` follows for every batch size; these have one path.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models.parts.mlp import mlp

# What the tokens of a block attend to: each other; the context; the context and each other.
Attends = Literal["self", "context", "both"]

# Score of what is not attended to: a softmax makes 0 of it, and float16 can hold it.
MASKED = -6e4


class Attention(nn.Module):
    """Scaled dot-product attention of several heads.

    After Vaswani et al. 2017, "Attention Is All You Need".
    """

    def __init__(self, width: int, heads: int, score_scale: float = 1.0) -> None:
        """Make the projections; `score_scale` multiplies the scores, besides the usual D ** -0.5 of a head.

        Raises:
            ValueError: the width is no multiple of the heads.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of the heads, got {width} and {heads}")
        self.heads, self.scale = heads, score_scale * (width // heads) ** -0.5
        self.query_projection = nn.Linear(width, width)
        self.key_projection = nn.Linear(width, width)
        self.value_projection = nn.Linear(width, width)
        self.output_projection = nn.Linear(width, width)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the attended values, float32 [N, Q, D]; see `with_weights`."""
        return self.attend(tokens, *self.keys_values(context), mask)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of a context, float32 [N, P, D]: each float32 [N, heads, P, D / heads]."""
        return self._split(self.key_projection(context)), self._split(self.value_projection(context))

    def attend(self, tokens: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what tokens float32 [N, Q, D] attend to of the keys and values that are known already."""
        queries = self._split(self.query_projection(tokens))
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=self.scale
        )
        return self.output_projection(attended.transpose(1, 2).flatten(2))

    def with_weights(
        self, tokens: Tensor, context: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Let tokens attend to the context.

        Args:
            tokens: float32 [N, Q, D]
            context: float32 [N, P, D]
            mask: bool, broadcast to [N, heads, Q, P], False where the context is not to be attended to;
                None: all of it is

        Returns:
            the attended values, float32 [N, Q, D], and the weights, float32 [N, heads, Q, P], sum to 1 over P
        """
        queries, keys, values = self._project(tokens, context)
        scores = queries @ keys.transpose(-1, -2) * self.scale
        if mask is not None:
            scores = scores.masked_fill(~mask, MASKED)
        weights = torch.softmax(scores, dim=-1)
        return self.output_projection((weights @ values).transpose(1, 2).flatten(2)), weights

    def _project(self, tokens: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values: float32 [N, heads, Q or P, D / heads]."""
        return self._split(self.query_projection(tokens)), *self.keys_values(context)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, heads, Q, D / heads]


class Modulation(NamedTuple):
    """How a condition changes one of a block's two branches: each float32 [N, 1, D]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class KeysValues(NamedTuple):
    """What the tokens so far are attended by: each float32 [N, heads, P, D / heads]."""

    keys: Tensor
    values: Tensor


class Block(nn.Module):
    """A transformer block: attention, then a perceptron; norms before each, residuals around each.

    Norms before the branches after Xiong et al. 2020, "On Layer Normalization in the Transformer
    Architecture"; a condition scales, shifts and gates them after Peebles & Xie 2023, "Scalable Diffusion
    Models with Transformers".
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        attends: Attends = "self",
        conditioned: bool = False,
        score_scale: float = 1.0,
    ) -> None:
        """Make the block.

        Args:
            width: of the tokens
            heads: of the attention
            mlp_width: of the perceptron's hidden layer
            attends: what the tokens attend to; a context has a norm of its own
            conditioned: whether a condition modulates the block
            score_scale: see `Attention`
        """
        super().__init__()
        self.attends: Attends = attends
        self.attention = Attention(width, heads, score_scale)
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=not conditioned)
        self.context_norm = None if attends == "self" else nn.LayerNorm(width)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=not conditioned)
        self.mlp = mlp(width, mlp_width, 1, width)
        self.modulation = nn.Linear(width, 6 * width) if conditioned else None

    def forward(
        self,
        tokens: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Return the block's tokens: float32 [N, Q, D].

        Args:
            tokens: float32 [N, Q, D]
            context: float32 [N, P, D]; a block that attends to itself takes it as the tokens that come before
                these in their own sequence, as this block was given them (from a cache)
            mask: bool, broadcast to [N, heads, Q, P], P + Q or Q for what is attended to; see `Attention`
            condition: float32 [N, 1, D], for a conditioned block
        """
        first, second = self._modulations(condition)
        normed = _modulate(self.attention_norm(tokens), first)
        attended = self.attention(normed, self._attended(normed, context), mask)
        return self._add(tokens, attended, first, second)

    def step(self, tokens: Tensor, past: KeysValues, mask: Tensor | None = None) -> tuple[Tensor, KeysValues]:
        """Go on with a sequence whose keys and values are kept, in a block that attends to itself.

        Args:
            tokens: float32 [N, Q, D], which attend to the past and to each other
            past: of the tokens before them, as this method or `remember` returned them
            mask: bool, broadcast to [N, heads, Q, P + Q]; see `Attention`

        Returns:
            the block's tokens, and the past with these tokens
        """
        normed = self.attention_norm(tokens)
        keys, values = self.attention.keys_values(normed)
        past = KeysValues(torch.cat([past.keys, keys], dim=2), torch.cat([past.values, values], dim=2))
        attended = self.attention.attend(normed, past.keys, past.values, mask)
        return self._add(tokens, attended, None, None), past

    def remember(self, tokens: Tensor) -> KeysValues:
        """Return the keys and values of tokens float32 [N, P, D], as this block was given them."""
        return KeysValues(*self.attention.keys_values(self.attention_norm(tokens)))

    def with_weights(
        self, tokens: Tensor, context: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens of a block without a condition, and the attention's weights [N, heads, Q, P]."""
        normed = self.attention_norm(tokens)
        attended, weights = self.attention.with_weights(normed, self._attended(normed, context), mask)
        return self._add(tokens, attended, None, None), weights

    def _add(
        self, tokens: Tensor, attended: Tensor, first: Modulation | None, second: Modulation | None
    ) -> Tensor:
        """Add what was attended to, then what the perceptron makes of both."""
        tokens = tokens + _gate(attended, first)
        return tokens + _gate(self.mlp(_modulate(self.mlp_norm(tokens), second)), second)

    def _attended(self, normed: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return normed
        norm = self.context_norm or self.attention_norm
        attended = norm(context)
        return attended if self.attends == "context" else torch.cat([attended, normed], dim=1)

    def _modulations(self, condition: Tensor | None) -> tuple[Modulation | None, Modulation | None]:
        """Return those of the attention and of the perceptron."""
        if self.modulation is None:
            return None, None
        parts = self.modulation(condition).chunk(6, dim=-1)
        return Modulation(*parts[:3]), Modulation(*parts[3:])


def _modulate(tokens: Tensor, by: Modulation | None) -> Tensor:
    return tokens if by is None else tokens * (1 + by.scale) + by.shift


def _gate(tokens: Tensor, by: Modulation | None) -> Tensor:
    return tokens if by is None else by.gate * tokens
