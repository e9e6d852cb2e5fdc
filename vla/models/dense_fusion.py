"""Dense fusion: words and picture read each other at every level of a stack, and every level is read out.

A level is a pair of cross-attention blocks, as ViLBERT's co-attention (Lu et al. 2019): words read the
picture's cells while cells read the words, each with its perceptron, residuals and norms. After every level
queries made from the words attend over the cells; where they look (soft arg-max, Levine et al. 2016) and
what they see, of all levels together as in DenseNet (Huang et al. 2017), decides the actions. The usual
sketch pools both sides to one vector first: attention over one token is the constant 1, and its blocks fuse
nothing.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, Sizes
from vla.models.blocks import CrossBlock
from vla.models.language import Summary, WordTokens
from vla.models.spatial import attend, grid, multilayer, read_out
from vla.models.vision import convolutions, edge_of, to_cells

STRIDE = 8


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    # Channels and depth of the convolutions that make the cells.
    channels: int = 48
    depth: int = 1
    # Width of the tokens of both sides, and heads and perceptrons of their blocks.
    width: int = 32
    heads: int = 4
    inner: int = 64
    # Self-attention blocks over the words, which the server caches.
    text_layers: int = 1
    # Levels of fusion.
    levels: int = 2
    # Queries of each level, and features that each reports.
    queries: int = 2
    features: int = 16
    # Width and hidden layers of the action head.
    hidden: int = 256
    layers: int = 2

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(
            channels=8,
            depth=0,
            width=8,
            heads=2,
            inner=16,
            queries=1,
            features=4,
            hidden=16,
            layers=1,
        )

    @classmethod
    def base(cls) -> Self:
        """Six levels of width 512, the size of ViLBERT's co-attention stack with half its width."""
        return cls(
            channels=128,
            depth=3,
            width=512,
            heads=8,
            inner=2048,
            text_layers=6,
            levels=6,
            queries=4,
            features=32,
            hidden=512,
        )


class Level(nn.Module):
    """Both sides read each other as they were before the level, then queries read the cells."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.words = CrossBlock(width, config.heads, config.inner)
        self.cells = CrossBlock(width, config.heads, config.inner)
        self.summary = Summary(width)
        self.ask = multilayer(width, 2 * width, 1, config.queries * width)
        self.normalise = nn.LayerNorm(width)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, config.features)
        self.queries = config.queries

    def forward(
        self, words: Tensor, mask: Tensor, cells: Tensor, cameras: int
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Fuse and read out.

        Args:
            words: float32 [N, L, D]
            mask: bool [N, L]
            cells: float32 [N, C * P, D]
            cameras: C

        Returns:
            words and cells that know of each other, and the read-out: the words' summary [N, D], the
            attention [N, C, queries, P] and the cells' values [N, C, P, features]
        """
        said = self.words(words, cells)[0]
        seen = self.cells(cells, words, mask)[0]
        summary = self.summary(said, mask)[0]
        queries = self.ask(summary).unflatten(-1, (self.queries, -1))
        maps = self.normalise(seen).unflatten(1, (cameras, -1))
        return said, seen, (summary, attend(queries, self.keys(maps)), self.values(maps))


class Model(nn.Module):
    """See `vla.models` for the signature; Lc is L: the words' features.

    Raises:
        ValueError: the pictures' size is no multiple of `STRIDE`.
    """

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        width = config.width
        self.edge = edge_of(sizes.image_size, STRIDE)
        self.tower = convolutions(config.channels, STRIDE, config.depth)
        self.project = nn.Linear(config.channels + 2, width)
        self.text = WordTokens(
            sizes.vocabulary,
            sizes.context_length,
            width,
            layers=config.text_layers,
            heads=config.heads,
            inner=config.inner,
        )
        self.levels = nn.ModuleList([Level(config) for _ in range(config.levels)])
        self.centres: Tensor
        self.register_buffer("centres", grid(self.edge, self.edge), persistent=False)
        seen = config.levels * (sizes.cameras * config.queries * (2 + config.features) + width)
        outputs = sizes.horizon * sizes.action
        self.decide = multilayer(seen + sizes.state, config.hidden, config.layers, outputs)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the words' own blocks: float32 [N, L, width], bool [N, L]."""
        return self.text(input_ids, attention_mask), attention_mask.bool()

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk and the mean attention of all levels' queries."""
        actions, attention = self._fuse(self._cells(images), command, command_mask, state)
        return {"actions": actions, "attention": attention.unflatten(-1, (self.edge, self.edge))}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised."""
        command, mask = self.encode_command(batch.input_ids, batch.attention_mask)
        told = batch.commands_per_frame
        cells = self._cells(batch.images).repeat_interleave(told, 0)
        actions, _ = self._fuse(cells, command, mask, batch.state.repeat_interleave(told, 0))
        return {"actions": functional.mse_loss(actions, batch.actions)}

    def _cells(self, images: Tensor) -> Tensor:
        """Return what is common to all commands: float32 [B, C * P, width]."""
        cells = to_cells(self.tower, images)
        places = self.centres.expand(*cells.shape[:2], -1, -1)
        return self.project(torch.cat([cells, places], dim=-1)).flatten(1, 2)

    def _fuse(self, cells: Tensor, words: Tensor, mask: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chunk, float32 [N, T, A], and the attention, float32 [N, C, P]."""
        known, attention = [state], []
        for level in self.levels:
            words, cells, (summary, weights, values) = level(words, mask, cells, self.sizes.cameras)
            known += [summary, read_out(weights, values, self.centres, 1).flatten(1)]
            attention.append(weights.mean(2))
        actions = self.decide(torch.cat(known, dim=-1))
        chunk = actions.unflatten(-1, (self.sizes.horizon, self.sizes.action))
        return chunk, torch.stack(attention).mean(0)
