"""Text encoders: commands in, one vector or one vector a token out.

Word embeddings start at zero: a word that training never met adds nothing to a command. None of the encoders
reads the padding, whatever it holds.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models.parts.attention import MASKED, Block
from vla.models.parts.mlp import mlp

# Small enough that a norm lifts word embeddings to unit scale as soon as they leave zero.
EPSILON = 1e-8
# Letters of a word that `SpelledWords` reads, its separator included; the rest counts as the last.
LONGEST = 16


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
        words = self.embedding_norm(self.embedding(input_ids))
        if not self.training:
            return self.norm(mean(self.lstm(words)[0], attention_mask))
        # In float32 whatever else is trained in: on many processors torch has no other LSTM.
        with torch.autocast(words.device.type, enabled=False):
            return self.norm(mean(self.lstm(words.float())[0], attention_mask))


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


class SpelledWords(nn.Module):
    """Words from their letters, then transformer blocks over the words: one vector a word.

    Convolutions read a word's letters, and the word is the largest of what they see in it, after Kim et al.
    2016, "Character-Aware Neural Language Models": words that are spelled alike begin alike, so that a typing
    error costs little, and the table holds letters instead of a vocabulary.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        *,
        separator: int,
        words: int,
        letters: int,
        layers: int,
        heads: int,
        mlp_width: int,
    ) -> None:
        """Make the encoder.

        Args:
            vocabulary: number of letters
            width: of a word's vector
            separator: the letter that begins a word
            words: that are told apart; what comes after joins the last
            letters: width of the convolutions
            layers: of the transformer
            heads: of its attention
            mlp_width: of its perceptrons
        """
        super().__init__()
        self.separator, self.words = separator, words
        # Share of the features that is dropped after each layer in training.
        self.dropout = 0.0
        # One more letter stands for nothing.
        self.embedding = nn.Embedding(vocabulary + 1, letters, padding_idx=vocabulary)
        self.convolutions = nn.ModuleList([nn.Conv1d(letters, letters, 3, padding=1) for _ in range(2)])
        self.projection = nn.Sequential(nn.LayerNorm(2 * letters), mlp(2 * letters, 2 * width, 1, width))
        self.positional_embedding = nn.Parameter(0.02 * torch.randn(words, width))
        self.blocks = nn.ModuleList([Block(width, heads, mlp_width) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode int64 [N, L] to float32 [N, W, D] and the bool mask [N, W] of the words there are."""
        words, mask = self.spell(input_ids, attention_mask)
        return self.mix(words, mask), mask

    def spell(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode each word by its letters alone: int64 [N, L] to float32 [N, W, D] and the words' mask."""
        spelled, mask = self._spell(input_ids, attention_mask.bool())
        return self._words(spelled), mask

    def mix(self, words: Tensor, mask: Tensor) -> Tensor:
        """Read words float32 [N, W, D] in their order, each beside all others: float32 [N, W, D]."""
        tokens = words + self.positional_embedding[: words.shape[1]]
        attended = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        for block in self.blocks:
            tokens = functional.dropout(block(tokens, mask=attended), self.dropout, self.training)
        return self.norm(tokens)

    def _spell(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Lay the letters out by words: int64 [N, W, LONGEST], bool [N, W]."""
        nothing = self.embedding.num_embeddings - 1
        begins = (input_ids == self.separator) & mask
        word = (begins.long().cumsum(1) - 1).clamp(0, self.words - 1)
        place = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        start = torch.where(begins, place, 0).cummax(1).values
        slot = word * LONGEST + (place - start).clamp(0, LONGEST - 1)
        # What is no letter goes into a slot of its own, which is cut off.
        slot = torch.where(mask, slot, self.words * LONGEST)
        grid = torch.full_like(slot[:, :1], nothing).repeat(1, self.words * LONGEST + 1)
        grid = grid.scatter(1, slot, input_ids)[:, :-1].unflatten(1, (self.words, LONGEST))
        there = (grid != nothing).any(-1)
        if self.training:  # as many as there are; a trace would freeze that
            count = int(there.sum(1).max().clamp_min(1))
            grid, there = grid[:, :count], there[:, :count]
        return grid, there

    def _words(self, spelled: Tensor) -> Tensor:
        """Return the words' vectors: int64 [N, W, LONGEST] -> float32 [N, W, D]."""
        rows = spelled.flatten(0, 1)
        where = None
        if self.training:  # a batch says the same words again and again
            rows, where = _distinct(rows)
        real = (rows != self.embedding.num_embeddings - 1).unsqueeze(1)  # [U, 1, LONGEST]
        letters = self.embedding(rows).transpose(1, 2)
        for convolution in self.convolutions:
            letters = letters + functional.relu(convolution(letters)) * real
        mean = letters.sum(-1) / real.sum(-1).clamp_min(1)
        vectors = self.projection(torch.cat([mean, letters.amax(-1)], dim=-1))
        return (vectors if where is None else vectors[where]).unflatten(0, spelled.shape[:2])


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows of int64 [M, K] and each row's index among them, by a hash of every row."""
    factors = torch.arange(1, rows.shape[1] + 1, device=rows.device) * 2654435761 + 40503
    keys = ((rows + 1) * factors).sum(1) ^ ((rows + 7) ** 3 * factors.flip(0)).sum(1)
    distinct, where = keys.unique(return_inverse=True)
    first = torch.empty_like(distinct).scatter(0, where, torch.arange(len(rows), device=rows.device))
    return rows[first], where


class AttentionPooling(nn.Module):
    """The mean of a command's tokens, weighted by a learned score of each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of float32 [N, L, D] under a bool mask [N, L], and the weights [N, L]."""
        scores = self.score(tokens).masked_fill(~mask.unsqueeze(-1), MASKED)  # [N, L, 1]
        weights = torch.softmax(scores, dim=1)
        return (weights * tokens.masked_fill(~mask.unsqueeze(-1), 0)).sum(1), weights.squeeze(-1)


def mean(tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean of the unmasked tokens: float32 [N, L, D], int64 [N, L] -> float32 [N, D]."""
    weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)
