"""A foundation model in small: every input becomes tokens, one transformer fuses them, another acts.

The layout of the tokens is that of Ghosh et al. 2024, "Octo: An Open-Source Generalist Robot Policy"
(github.com/octo-models/octo), the projection that of Jaegle et al. 2021, "Perceiver: General Perception with
Iterative Attention": a few latents, made from the command, read each camera by cross-attention and keep the
position they looked at (Levine et al. 2016, "End-to-End Training of Deep Visuomotor Policies"). With the
state's token and the words they pass through the fusion transformer. The policy's decoder has one query a
time step, which attend to the fused tokens and to each other. The actions are a normal distribution; its mean
is served, so that equal requests get equal answers, and its scale becomes the confidence. No past action is
an input, for a request carries none; the state takes their place.
"""

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.attention import Block
from vla.models.parts.mlp import mlp
from vla.models.parts.read_out import attend, position_grid, with_positions
from vla.models.parts.text import AttentionPooling, TextTransformer
from vla.models.parts.towers import Convolutions, edge_of, encode_images
from vla_runtime.spec import Extra

STRIDE = 8
# Confidence is the share of the chunk expected to lie this near to the demonstrator's, in a range of 2.
TOLERANCE = 0.2
# Smallest scale, so that no number of the chunk outweighs all others [normalised].
SMALLEST = 0.02


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    # Channels and depth of the convolutions.
    channels: int = 48
    depth: int = 1
    # Width of all tokens, and heads and perceptrons of their blocks.
    width: int = 64
    heads: int = 4
    inner: int = 128
    # Latents that read each camera.
    latents: int = 4
    # Blocks over the words, of the fusion transformer, and of the policy's decoder.
    text_layers: int = 1
    fusion_layers: int = 2
    policy_layers: int = 2

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(
            channels=8, depth=0, width=8, heads=2, inner=16, latents=2, fusion_layers=1, policy_layers=1
        )

    @classmethod
    def base(cls) -> Self:
        """Octo-Base: a fusion transformer of ViT-B's size, 12 blocks of width 768."""
        return cls(
            channels=256,
            depth=3,
            width=768,
            heads=12,
            inner=3072,
            latents=16,
            text_layers=4,
            fusion_layers=12,
            policy_layers=4,
        )


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature; Lc is L: the text features.

    Raises:
        ValueError: the pictures' size is no multiple of `STRIDE`.
    """

    # The distribution's standard deviations: float32 [B, T, A], normalised as the actions are.
    extras = MappingProxyType({"scale": Extra(unit="normalised")})

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        width, heads, inner = config.width, config.heads, config.inner
        self.edge = edge_of(sizes.image_size, STRIDE)
        self.tower = Convolutions(config.channels, STRIDE, config.depth)
        self.text_encoder = TextTransformer(
            sizes.vocabulary,
            sizes.context_length,
            width,
            layers=config.text_layers,
            heads=heads,
            mlp_width=inner,
        )
        self.pooling = AttentionPooling(width)
        self.query_projection = mlp(width, 2 * width, 1, config.latents * width)
        self.key_projection = nn.Linear(config.channels + 2, width)
        self.latent_projection = mlp(config.channels + 2, inner, 1, width)
        self.latent_embedding = nn.Parameter(0.02 * torch.randn(sizes.cameras * config.latents, width))
        self.state_embedding = mlp(sizes.state, inner, 1, width) if sizes.state else None
        self.fusion_blocks = nn.ModuleList([Block(width, heads, inner) for _ in range(config.fusion_layers)])
        self.step_embedding = nn.Parameter(0.02 * torch.randn(sizes.horizon, width))
        layers = range(config.policy_layers)
        self.cross_blocks = nn.ModuleList([Block(width, heads, inner, attends="context") for _ in layers])
        self.self_blocks = nn.ModuleList([Block(width, heads, inner) for _ in layers])
        self.norm = nn.LayerNorm(width)
        self.mean_head = nn.Linear(width, sizes.action)
        self.scale_head = nn.Linear(width, sizes.action)
        self.positions: Tensor
        self.register_buffer("positions", position_grid(self.edge, self.edge), persistent=False)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the text encoder: float32 [N, L, width], bool [N, L]."""
        return self.text_encoder(input_ids, attention_mask), attention_mask.bool()

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the distribution's mean and scale, normalised, the confidence and the latents' attention."""
        mean, scale, attention = self._decode(self._encode(images), command, command_mask, state)
        near = torch.erf(TOLERANCE / (math.sqrt(2) * scale))  # the probability of each number
        return {
            "actions": mean,
            "scale": scale,
            "confidence": near.mean((1, 2)),
            "attention": attention.mean(2).unflatten(-1, (self.edge, self.edge)),
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error of the mean, and the scale's negative log-likelihood.

        The likelihood trains the scale alone. Through the mean it would weight what is easy by its small
        scale, and what is not yet learned least of all (Seitzer et al. 2022, "On the Pitfalls of
        Heteroscedastic Uncertainty Estimation with Probabilistic Neural Networks").
        """
        command, mask = self.encode_command(batch.input_ids, batch.attention_mask)
        features = batch.per_command(self._encode(batch.images))
        mean, scale, _ = self._decode(features, command, mask, batch.per_command(batch.state))
        error = (mean.detach() - batch.actions) / scale
        return {
            "actions": functional.mse_loss(mean, batch.actions),
            "scale": (scale.log() + error.square() / 2).mean(),
        }

    def _encode(self, images: Tensor) -> Tensor:
        """Return what is common to all commands: float32 [B, C, P, channels + 2]."""
        return with_positions(encode_images(self.tower, images), self.positions)

    def _decode(
        self, features: Tensor, text: Tensor, mask: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and scale, float32 [N, T, A], and the latents' attention, [N, C, latents, P]."""
        queries = self.query_projection(self.pooling(text, mask)[0])
        attention = attend(queries.unflatten(-1, (self.config.latents, -1)), self.key_projection(features))
        tokens = [self.latent_projection(attention @ features).flatten(1, 2) + self.latent_embedding]
        if self.state_embedding is not None:
            tokens.append(self.state_embedding(state).unsqueeze(1))
        seen = torch.cat(tokens, dim=1)
        mask = torch.cat([torch.ones_like(seen[..., 0], dtype=torch.bool), mask], dim=1)[:, None, None]
        fused = torch.cat([seen, text], dim=1)
        for block in self.fusion_blocks:
            fused = block(fused, mask=mask)
        steps = self.step_embedding.expand(text.shape[0], -1, -1)
        for cross_block, self_block in zip(self.cross_blocks, self.self_blocks, strict=True):
            steps = self_block(cross_block(steps, fused, mask))
        steps = self.norm(steps)
        scale = functional.softplus(self.scale_head(steps.detach())) + SMALLEST
        return self.mean_head(steps), scale, attention
