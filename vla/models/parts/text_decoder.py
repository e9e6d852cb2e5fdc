"""Text after a sequence: a transformer's own blocks go on with words, each the most probable one.

After Alayrac et al. 2022, "Flamingo: a Visual Language Model for Few-Shot Learning", words are decoded one
after the other, given the pictures and all words before. What was computed before the text is kept as keys
and values, after Pope et al. 2023, "Efficiently Scaling Transformer Inference", so that a word costs one
token a layer. The number of words is fixed, so that a trace can keep the loop: after the end only the end
follows.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models.parts.attention import Block, KeysValues
from vla.models.parts.mlp import mlp
from vla.models.parts.read_out import position_grid, soft_argmax

Head: TypeAlias = Callable[[Tensor], Tensor]


class SceneTokens(nn.Module):
    """What a text needs of the pictures, whatever the command: a token a look, and tokens of all together.

    A look is a learned query's mean position on the feature map and the features there.
    """

    def __init__(self, cameras: int, edge: int, channels: int, state: int, *, looks: int, width: int) -> None:
        """Make the parts.

        Args:
            cameras: C
            edge: positions along the map's edge; P is its square
            channels: of the feature map
            state: S, dimensions of the state
            looks: Q, in each picture
            width: of a token
        """
        super().__init__()
        self.query_head = nn.Linear(channels, looks)
        size = 2 + channels
        self.projection = nn.Linear(size, width)
        self.embedding = nn.Parameter(0.02 * torch.randn(cameras * looks, width))
        # Where things lie relative to each other and to the hand: half as many tokens as looks.
        self.layout = mlp(cameras * looks * 2 + state, 4 * width, 1, max(1, looks // 2) * width)
        self.positions: Tensor
        self.register_buffer("positions", position_grid(edge, edge), persistent=False)

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Look at frames.

        Args:
            features: float32 [B, C, P, channels]
            state: float32 [B, S], normalised

        Returns:
            the tokens, float32 [B, M, width], and where the looks are, float32 [B, C, Q, 2], in [-1, 1]
        """
        attention = torch.softmax(self.query_head(features).transpose(-1, -2), dim=-1)  # [B, C, Q, P]
        seen = soft_argmax(attention, features, self.positions)
        where = seen[..., :2]
        layout = self.layout(torch.cat([where.flatten(1), state], dim=-1))
        tokens = self.projection(seen).flatten(1, 2) + self.embedding
        return torch.cat([tokens, layout.unflatten(-1, (-1, tokens.shape[-1]))], dim=1), where


class Before(NamedTuple):
    """What a text goes on from."""

    # Each layer's input, float32 [N, P, D].
    tokens: Sequence[Tensor]
    # bool [N, P], which of them are attended to.
    mask: Tensor
    # float32 [N, M, D], tokens of the scene: they see each other and what comes before, words see them all.
    scene: Tensor


class TextDecoder(nn.Module):
    """Words as further tokens of a transformer whose blocks, head and positions its owner has."""

    def __init__(self, pieces: int, end: int, width: int) -> None:
        """Make the embeddings of `pieces` words, of which `end` ends a text."""
        super().__init__()
        self.end = end
        self.embedding = nn.Embedding(pieces, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.begin = nn.Parameter(0.02 * torch.randn(1, width))

    def loss(
        self, blocks: Sequence[Block], head: Head, before: Before, text: Tensor, places: Tensor
    ) -> Tensor:
        """Return the mean surprise of a text's words and its end, each text weighing the same [nats].

        Args:
            blocks: the transformer's layers, which attend to themselves
            head: turns the last layer's output, float32 [N, n, D], into what is compared with the embeddings
            before: what the text goes on from
            text: int64 [N, n], filled up with the end
            places: float32 [n, D] at least, embeddings of a word's place
        """
        count, first = text.shape[1], before.scene.shape[1]
        begin = self.begin.expand(len(text), 1, -1)
        words = torch.cat([begin, self.embedding(text[:, :-1])], dim=1) + places[:count]
        tokens = torch.cat([before.scene, words], dim=1)
        sees = torch.ones(first + count, first + count, dtype=torch.bool, device=text.device).tril()
        sees[:first, :first] = True
        earlier = before.mask[:, None].expand(-1, first + count, -1)
        mask = torch.cat([earlier, sees.expand(len(text), -1, -1)], dim=2).unsqueeze(1)
        for block, past in zip(blocks, before.tokens, strict=True):
            tokens = block(tokens, past, mask)
        logits = self._logits(head, tokens[:, first:])
        surprise = functional.cross_entropy(logits.flatten(0, 1), text.flatten(), reduction="none")
        said = torch.cat([torch.ones_like(text[:, :1]), (text[:, :-1] != self.end).long()], dim=1)
        return ((surprise.view_as(text) * said).sum(1) / said.sum(1)).mean()

    def decode(
        self, blocks: Sequence[Block], head: Head, before: Before, places: Tensor, count: int
    ) -> Tensor:
        """Return the most probable words, one after the other: int64 [N, count]; see `loss`."""
        kept, mask, tokens = [], before.mask, before.scene
        for block, past in zip(blocks, before.tokens, strict=True):
            kept.append(block.remember(past))
        mask = torch.cat([mask, torch.ones_like(tokens[..., 0], dtype=torch.bool)], dim=1)
        kept = self._step(blocks, tokens, kept, mask)[1]
        one = torch.ones_like(mask[:, :1])
        token = self.begin + torch.zeros_like(tokens[:, 0])
        said, ended = [], torch.zeros_like(mask[:, 0])
        for place in range(count):
            mask = torch.cat([mask, one], dim=1)
            output, kept = self._step(blocks, (token + places[place]).unsqueeze(1), kept, mask)
            word = self._logits(head, output).squeeze(1).argmax(-1)
            word = word.masked_fill(ended, self.end)
            ended = ended | (word == self.end)
            token = self.embedding(word)
            said.append(word)
        return torch.stack(said, dim=1)

    def _step(
        self, blocks: Sequence[Block], tokens: Tensor, kept: list[KeysValues], mask: Tensor
    ) -> tuple[Tensor, list[KeysValues]]:
        """Run all layers over further tokens, which see each other; returns what is kept then, too."""
        after = []
        for block, past in zip(blocks, kept, strict=True):
            tokens, extended = block.step(tokens, past, mask[:, None, None])
            after.append(extended)
        return tokens, after

    def _logits(self, head: Head, output: Tensor) -> Tensor:
        return head(output) @ self.embedding.weight.T
