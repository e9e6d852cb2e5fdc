"""Multi-head attention and transformer blocks, written out so that they trace and return their weights.

`torch.nn.TransformerEncoderLayer` takes another path in evaluation mode, which neither `torch.jit.trace` nor
`torch.export` follows for every batch size; these have one path.
"""

import torch
from torch import Tensor, nn

from vla.models.spatial import multilayer


class Attention(nn.Module):
    """Scaled dot-product attention of several heads (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int, sharpness: float = 1.0) -> None:
        """Make the layers; `sharpness` multiplies the scores, from which softmax makes weights."""
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of the heads, got {width} and {heads}")
        self.heads, self.scale = heads, sharpness * (width // heads) ** -0.5
        self.ask = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.merge = nn.Linear(width, width)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Let tokens read the context.

        Args:
            tokens: float32 [N, Q, D]
            context: float32 [N, P, D]
            mask: bool [N, P], False where the context is not to be read; None: all of it is

        Returns:
            what they read, float32 [N, Q, D], and the weights, float32 [N, heads, Q, P], sum to 1 over P
        """
        asked, keys, values = (
            self._split(self.ask(tokens)),
            self.key(context),
            self._split(self.value(context)),
        )
        scores = asked @ self._split(keys).transpose(-1, -2) * self.scale
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -1e9)
        weights = torch.softmax(scores, dim=-1)
        return self.merge((weights @ values).transpose(1, 2).flatten(2)), weights

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, heads, Q, D / heads]


class SelfBlock(nn.Module):
    """Self-attention, then a perceptron; norms before each, residuals around each (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.before = nn.LayerNorm(width)
        self.between = nn.LayerNorm(width)
        self.think = multilayer(width, inner, 1, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return tokens that know of each other: float32 [N, Q, D]; `mask` is bool [N, Q]."""
        normalised = self.before(tokens)
        tokens = tokens + self.attention(normalised, normalised, mask)[0]
        return tokens + self.think(self.between(tokens))


class CrossBlock(nn.Module):
    """As `SelfBlock`, but the tokens read another sequence."""

    def __init__(self, width: int, heads: int, inner: int, sharpness: float = 1.0) -> None:
        super().__init__()
        self.attention = Attention(width, heads, sharpness)
        self.before = nn.LayerNorm(width)
        self.before_context = nn.LayerNorm(width)
        self.between = nn.LayerNorm(width)
        self.think = multilayer(width, inner, 1, width)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return tokens that know of the context, and the weights; see `Attention`."""
        read, weights = self.attention(self.before(tokens), self.before_context(context), mask)
        tokens = tokens + read
        return tokens + self.think(self.between(tokens)), weights
