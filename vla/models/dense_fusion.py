"""Dense fusion: text and image tokens attend to each other in every level of a stack; all levels are read.

A level is a pair of cross-attention blocks, the co-attention of Lu et al. 2019, "ViLBERT: Pretraining
Task-Agnostic Visiolinguistic Representations for Vision-and-Language Tasks". After every level queries made
from the text attend over the image tokens; where they look, by the spatial soft arg-max of Levine et al.
2016, "End-to-End Training of Deep Visuomotor Policies", and what they see decides the actions, all levels
together as in Huang et al. 2017, "Densely Connected Convolutional Networks". Both sides stay sequences:
attention over a single pooled token has the weight 1 whatever it learns, and would fuse nothing.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.attention import Block
from vla.models.parts.mlp import ActionHead
from vla.models.parts.read_out import ImageTokens, QueryReadOut
from vla.models.parts.text import AttentionPooling, TextTransformer

STRIDE = 8


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    # Channels and depth of the convolutions.
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
    """Both sides attend to each other as they were before the level, then queries read the picture."""

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        width = config.width
        self.text_block = Block(width, config.heads, config.inner, attends="context")
        self.image_block = Block(width, config.heads, config.inner, attends="context")
        self.pooling = AttentionPooling(width)
        self.norm = nn.LayerNorm(width)
        self.read_out = QueryReadOut(
            sizes.cameras,
            sizes.image_size // STRIDE,
            width,
            width,
            queries=config.queries,
            features=config.features,
        )
        self.cameras = sizes.cameras
        # Numbers that the level reads out for a command.
        self.size = self.read_out.size + width

    def forward(self, text: Tensor, mask: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fuse and read out.

        Args:
            text: float32 [N, L, D]
            mask: bool [N, L]
            image: float32 [N, C * P, D]

        Returns:
            text and image tokens that know of each other, what is read out of both, float32 [N, size], and
            the attention, float32 [N, C, queries, P]
        """
        new_text = self.text_block(text, image)
        new_image = self.image_block(image, text, mask[:, None, None])
        summary, _ = self.pooling(new_text, mask)
        features = self.norm(new_image).unflatten(1, (self.cameras, -1))
        seen, weights = self.read_out(features, self.read_out.make_queries(summary))
        return new_text, new_image, torch.cat([summary, seen], dim=-1), weights


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature; Lc is L: the text features.

    Raises:
        ValueError: the pictures' size is no multiple of `STRIDE`.
    """

    masked = True

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        width = config.width
        self.image_tokens = ImageTokens(sizes.image_size, config.channels, STRIDE, config.depth, width)
        self.text_encoder = TextTransformer(
            sizes.vocabulary,
            sizes.context_length,
            width,
            layers=config.text_layers,
            heads=config.heads,
            mlp_width=config.inner,
        )
        levels = [Level(config, sizes) for _ in range(config.levels)]
        self.levels = nn.ModuleList(levels)
        inputs = sum(level.size for level in levels) + sizes.state
        self.action_head = ActionHead(inputs, config.hidden, config.layers, sizes)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the text encoder: float32 [N, L, width], bool [N, L]."""
        return self.text_encoder(input_ids, attention_mask), attention_mask.bool()

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk and the mean attention of all levels' queries."""
        actions, attention = self._decode(self.image_tokens(images), command, command_mask, state)
        return {"actions": actions, "attention": self.image_tokens.as_map(attention)}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised."""
        command, mask = self.encode_command(batch.input_ids, batch.attention_mask)
        image = batch.per_command(self.image_tokens(batch.images))
        actions, _ = self._decode(image, command, mask, batch.per_command(batch.state))
        return {"actions": batch.squared_error(actions)}

    def _decode(self, image: Tensor, text: Tensor, mask: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chunk, float32 [N, T, A], and the attention, float32 [N, C, P]."""
        features, attention = [state], []
        for level in self.levels:
            text, image, read, weights = level(text, mask, image)
            features.append(read)
            attention.append(weights.mean(2))
        return self.action_head(*features), torch.stack(attention).mean(0)
