"""Cross-modal transformer: self-attention within words and within the picture, then each reads the other.

After LXMERT (Tan & Bansal 2019), over sequences on both sides: words and cells of the picture. The attention
of the words over the cells is itself the read-out: its mean, weighted by what each word has learned to
matter, says where to look (soft arg-max, Levine et al. 2016) and what is seen there. The usual sketch hands
one pooled token to its cross-attention, whose weights are then 1 whatever it learns, and gives its decoder
layers' arguments wrong names; here the weights mean something and are returned, over the picture and over
the words.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, Sizes
from vla.models.blocks import CrossBlock, SelfBlock
from vla.models.language import Summary, WordTokens
from vla.models.spatial import grid, multilayer
from vla.models.vision import convolutions, edge_of, to_cells
from vla_runtime.spec import Extra

STRIDE = 8
# Factor of the scores of words and cells. From the flat start of the usual scale, grounding takes far longer.
SHARPNESS = 8.0


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
    # Self-attention blocks over the words, and over the cells.
    text_layers: int = 1
    vision_layers: int = 1
    # Features that a head reports of what it sees.
    features: int = 16
    # Width and hidden layers of the action head.
    hidden: int = 256
    layers: int = 2

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(channels=8, depth=0, width=8, heads=2, inner=16, features=4, hidden=16, layers=1)

    @classmethod
    def base(cls) -> Self:
        """LXMERT's depths: nine blocks over the words, five over the picture, of width 768."""
        return cls(
            channels=128,
            depth=3,
            width=768,
            heads=12,
            inner=3072,
            text_layers=9,
            vision_layers=5,
            features=32,
            hidden=512,
        )


class Model(nn.Module):
    """See `vla.models` for the signature; Lc is L: the words' features.

    Raises:
        ValueError: the pictures' size is no multiple of `STRIDE`.
    """

    # The share of each token of the command in what the cells that are looked at read of it: float32 [B, L].
    extras: ClassVar[dict[str, Extra]] = {"word_attention": Extra()}

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        width, heads, inner = config.width, config.heads, config.inner
        self.edge = edge_of(sizes.image_size, STRIDE)
        self.tower = convolutions(config.channels, STRIDE, config.depth)
        self.project = nn.Linear(config.channels + 2, width)
        self.vision = nn.ModuleList([SelfBlock(width, heads, inner) for _ in range(config.vision_layers)])
        self.text = WordTokens(
            sizes.vocabulary,
            sizes.context_length,
            width,
            layers=config.text_layers,
            heads=heads,
            inner=inner,
        )
        self.words_read = CrossBlock(width, heads, inner, SHARPNESS)
        self.cells_read = CrossBlock(width, heads, inner)
        self.summary = Summary(width)
        self.values = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.features))
        self.centres: Tensor
        self.register_buffer("centres", grid(self.edge, self.edge), persistent=False)
        seen = sizes.cameras * heads * (2 + config.features)
        outputs = sizes.horizon * sizes.action
        self.decide = multilayer(seen + width + sizes.state, config.hidden, config.layers, outputs)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the words' own blocks: float32 [N, L, width], bool [N, L]."""
        return self.text(input_ids, attention_mask), attention_mask.bool()

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk, the words' attention over the cells and the cells' over the words."""
        actions, looks, words = self._fuse(self._cells(images), command, command_mask, state)
        attention = looks.mean(2).unflatten(-1, (self.edge, self.edge))
        return {"actions": actions, "attention": attention, "word_attention": words}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised."""
        command, mask = self.encode_command(batch.input_ids, batch.attention_mask)
        told = batch.commands_per_frame
        cells = self._cells(batch.images).repeat_interleave(told, 0)
        actions, _, _ = self._fuse(cells, command, mask, batch.state.repeat_interleave(told, 0))
        return {"actions": functional.mse_loss(actions, batch.actions)}

    def _cells(self, images: Tensor) -> Tensor:
        """Return what is common to all commands: float32 [B, C * P, width]."""
        cells = to_cells(self.tower, images)
        places = self.centres.expand(*cells.shape[:2], -1, -1)
        cells = self.project(torch.cat([cells, places], dim=-1)).flatten(1, 2)
        for block in self.vision:
            cells = block(cells)
        return cells

    def _fuse(
        self, cells: Tensor, words: Tensor, mask: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Let both sides read each other and decide.

        Returns:
            the chunk, float32 [N, T, A], the heads' attention, [N, C, heads, P], the words' shares, [N, L]
        """
        said, of_words = self.words_read(words, cells)  # of_words: [N, heads, L, C * P]
        seen, of_cells = self.cells_read(cells, words, mask)  # of_cells: [N, heads, C * P, L]
        summary, importance = self.summary(said, mask)
        mixed = (importance[:, None, None] @ of_words).squeeze(2)  # [N, heads, C * P], sums to 1
        looks = mixed.unflatten(-1, (self.sizes.cameras, -1)).transpose(1, 2)  # [N, C, heads, P]
        looks = looks / looks.sum(-1, keepdim=True).clamp_min(1e-9)
        values = self.values(seen).unflatten(1, (self.sizes.cameras, -1))
        found = torch.cat([looks @ self.centres, looks @ values], dim=-1).flatten(1)
        actions = self.decide(torch.cat([found, summary, state], dim=-1))
        shares = (mixed.mean(1, keepdim=True) @ of_cells.mean(1)).squeeze(1)
        return actions.unflatten(-1, (self.sizes.horizon, self.sizes.action)), looks, shares
