"""Small language encoders: commands in, one vector or one vector a token out.

Word vectors start at zero: a word that training never met adds nothing to a command. None of them reads the
padding, whatever it holds.
"""

import torch
from torch import Tensor, nn

from vla.models.blocks import SelfBlock

# Small enough that a norm lifts word vectors to unit scale as soon as they leave zero.
EPSILON = 1e-8


class Table(nn.Embedding):
    """Word vectors that start at zero."""

    def reset_parameters(self) -> None:
        """Fill with zeros."""
        nn.init.zeros_(self.weight)


class MeanWords(nn.Module):
    """The mean of a command's word vectors, normalised (Joulin et al. 2017); the order does not matter."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.table = Table(vocabulary, width)
        self.normalise = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode int64 [N, L] to float32 [N, D]."""
        return self.normalise(mean(self.table(input_ids), attention_mask))


class Lstm(nn.Module):
    """A forward LSTM over the words; the mean of its states (its last alone learns far more slowly)."""

    def __init__(self, vocabulary: int, width: int, layers: int = 1) -> None:
        super().__init__()
        self.table = Table(vocabulary, width)
        self.normalise = nn.LayerNorm(width, eps=EPSILON)
        self.read = nn.LSTM(width, width, layers, batch_first=True)
        self.summarise = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode int64 [N, L] to float32 [N, D]; padding comes last, so that no state before it reads it."""
        states, _ = self.read(self.normalise(self.table(input_ids)))
        return self.summarise(mean(states, attention_mask))


class WordTokens(nn.Module):
    """Words and their places through self-attention blocks: one vector a token."""

    def __init__(
        self, vocabulary: int, length: int, width: int, *, layers: int, heads: int, inner: int
    ) -> None:
        super().__init__()
        self.table = Table(vocabulary, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList([SelfBlock(width, heads, inner) for _ in range(layers)])
        self.normalise = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode int64 [N, L] to float32 [N, L, D]."""
        tokens = self.table(input_ids) + self.places[: input_ids.shape[1]]
        for block in self.blocks:
            tokens = block(tokens, attention_mask.bool())
        return self.normalise(tokens)


class Summary(nn.Module):
    """The mean of a command's tokens, weighted by what each has learned to matter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.importance = nn.Linear(width, 1)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of float32 [N, L, D] under a bool mask [N, L], and the weights [N, L]."""
        scores = self.importance(tokens).squeeze(-1).masked_fill(~mask, -1e9)
        weights = torch.softmax(scores, dim=-1)
        return (weights.unsqueeze(-1) * tokens.masked_fill(~mask.unsqueeze(-1), 0)).sum(1), weights


def mean(tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean of the unmasked tokens: float32 [N, L, D], int64 [N, L] -> float32 [N, D]."""
    weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)
