"""Text encoders: commands in, one vector or one vector a token out.

Word embeddings start at zero: a word that training never met adds nothing to a command. None of the encoders
reads the padding, whatever it holds.
"""

import torch
from torch import Tensor, nn

from vla.models.parts.attention import Block

# Small enough that a norm lifts word embeddings to unit scale as soon as they leave zero.
EPSILON = 1e-8


class WordEmbedding(nn.Embedding):
    """Word embeddings that start at zero."""

    def reset_parameters(self) -> None:
        """Fill with zeros."""
        nn.init.zeros_(self.weight)


class BagOfWords(nn.Module):
    """The mean of a command's word embeddings, normalised; the order does not matter.

    After Joulin et al. 2017, "Bag of Tricks for Efficient Text Classification".
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = WordEmbedding(vocabulary, width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode int64 [N, L] to float32 [N, D]."""
        return self.norm(mean(self.embedding(input_ids), attention_mask))


class Lstm(nn.Module):
    """A forward LSTM over the words; the mean of its states, for its last state learns far more slowly.

    After Hochreiter & Schmidhuber 1997, "Long Short-Term Memory".
    """

    def __init__(self, vocabulary: int, width: int, layers: int = 1) -> None:
        super().__init__()
        self.embedding = WordEmbedding(vocabulary, width)
        self.embedding_norm = nn.LayerNorm(width, eps=EPSILON)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode int64 [N, L] to float32 [N, D]; padding comes last, so that no state before it reads it."""
        states, _ = self.lstm(self.embedding_norm(self.embedding(input_ids)))
        return self.norm(mean(states, attention_mask))


class TextTransformer(nn.Module):
    """Words and their positions through transformer blocks: one vector a token."""

    def __init__(
        self, vocabulary: int, length: int, width: int, *, layers: int, heads: int, mlp_width: int
    ) -> None:
        """Make the encoder of commands of at most `length` tokens."""
        super().__init__()
        self.embedding = WordEmbedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList([Block(width, heads, mlp_width) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode int64 [N, L] to float32 [N, L, D]."""
        tokens = self.embedding(input_ids) + self.positional_embedding[: input_ids.shape[1]]
        mask = attention_mask.bool()[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, mask=mask)
        return self.norm(tokens)


class AttentionPooling(nn.Module):
    """The mean of a command's tokens, weighted by a learned score of each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of float32 [N, L, D] under a bool mask [N, L], and the weights [N, L]."""
        scores = self.score(tokens).masked_fill(~mask.unsqueeze(-1), -1e9)  # [N, L, 1]
        weights = torch.softmax(scores, dim=1)
        return (weights * tokens.masked_fill(~mask.unsqueeze(-1), 0)).sum(1), weights.squeeze(-1)


def mean(tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean of the unmasked tokens: float32 [N, L, D], int64 [N, L] -> float32 [N, D]."""
    weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)
