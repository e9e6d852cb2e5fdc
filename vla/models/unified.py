"""A foundation model in small: every input becomes tokens, one transformer fuses them, another acts.

After Octo (Ghosh et al. 2024, github.com/octo-models/octo) in its token layout and Perceiver (Jaegle et al.
2021) in its projection: a few latents, made from the command, read each camera by cross-attention and note
where they looked (soft arg-max, Levine et al. 2016); with the state's token and the words they pass through
the fusion transformer; the policy's decoder has one query a time step, which read the fused tokens and each
other. The actions are a normal distribution; its mean is served, and its scale becomes the confidence.

The usual sketch passes a decoder layer its memory under a name that it does not have, encodes past actions
that no request carries (the state takes their place), and draws the actions at random while it serves.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, Sizes
from vla.models.blocks import CrossBlock, SelfBlock
from vla.models.language import Summary, WordTokens
from vla.models.spatial import attend, grid, multilayer
from vla.models.vision import convolutions, edge_of, to_cells
from vla_runtime.spec import Extra

STRIDE = 8
# Confidence is the share of the chunk expected to lie this near to the demonstrator's, in a range of 2.
TOLERANCE = 0.2
# Smallest scale, so that no number of the chunk outweighs all others [normalised].
SMALLEST = 0.02


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    # Channels and depth of the convolutions that make the cells.
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


class Model(nn.Module):
    """See `vla.models` for the signature; Lc is L: the words' features.

    Raises:
        ValueError: the pictures' size is no multiple of `STRIDE`.
    """

    # The distribution's standard deviations: float32 [B, T, A], normalised as the actions are.
    extras: ClassVar[dict[str, Extra]] = {"scale": Extra(unit="normalised")}

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        width, heads, inner = config.width, config.heads, config.inner
        self.edge = edge_of(sizes.image_size, STRIDE)
        self.tower = convolutions(config.channels, STRIDE, config.depth)
        self.text = WordTokens(
            sizes.vocabulary,
            sizes.context_length,
            width,
            layers=config.text_layers,
            heads=heads,
            inner=inner,
        )
        self.summary = Summary(width)
        self.ask = multilayer(width, 2 * width, 1, config.latents * width)
        self.keys = nn.Linear(config.channels + 2, width)
        self.project = multilayer(2 + config.channels, inner, 1, width)
        self.latents = nn.Parameter(0.02 * torch.randn(sizes.cameras * config.latents, width))
        self.state = multilayer(sizes.state, inner, 1, width) if sizes.state else None
        self.fusion = nn.ModuleList([SelfBlock(width, heads, inner) for _ in range(config.fusion_layers)])
        self.steps = nn.Parameter(0.02 * torch.randn(sizes.horizon, width))
        self.read = nn.ModuleList([CrossBlock(width, heads, inner) for _ in range(config.policy_layers)])
        self.plan = nn.ModuleList([SelfBlock(width, heads, inner) for _ in range(config.policy_layers)])
        self.normalise = nn.LayerNorm(width)
        self.mean = nn.Linear(width, sizes.action)
        self.spread = nn.Linear(width, sizes.action)
        self.centres: Tensor
        self.register_buffer("centres", grid(self.edge, self.edge), persistent=False)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the words' own blocks: float32 [N, L, width], bool [N, L]."""
        return self.text(input_ids, attention_mask), attention_mask.bool()

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the distribution's mean and scale, normalised, the confidence and the latents' attention."""
        mean, scale, looks = self._fuse(self._cells(images), command, command_mask, state)
        near = torch.erf(TOLERANCE / (math.sqrt(2) * scale))  # the probability of each number
        return {
            "actions": mean,
            "scale": scale,
            "confidence": near.mean((1, 2)),
            "attention": looks.mean(2).unflatten(-1, (self.edge, self.edge)),
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error of the mean, and the scale's negative log-likelihood.

        The likelihood trains the scale alone. Through the mean it would weigh what is easy by its small
        scale, and what is not yet learned least of all (Seitzer et al. 2022).
        """
        command, mask = self.encode_command(batch.input_ids, batch.attention_mask)
        told = batch.commands_per_frame
        cells = self._cells(batch.images).repeat_interleave(told, 0)
        mean, scale, _ = self._fuse(cells, command, mask, batch.state.repeat_interleave(told, 0))
        error = (mean.detach() - batch.actions) / scale
        return {
            "actions": functional.mse_loss(mean, batch.actions),
            "scale": (scale.log() + error.square() / 2).mean(),
        }

    def _cells(self, images: Tensor) -> Tensor:
        """Return what is common to all commands: float32 [B, C, P, channels + 2]."""
        cells = to_cells(self.tower, images)
        return torch.cat([self.centres.expand(*cells.shape[:2], -1, -1), cells], dim=-1)

    def _fuse(
        self, cells: Tensor, words: Tensor, mask: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and scale, float32 [N, T, A], and the latents' attention, [N, C, latents, P]."""
        queries = self.ask(self.summary(words, mask)[0]).unflatten(-1, (self.config.latents, -1))
        looks = attend(queries, self.keys(cells))
        tokens = [self.project(looks @ cells).flatten(1, 2) + self.latents]
        if self.state is not None:
            tokens.append(self.state(state).unsqueeze(1))
        seen = torch.cat(tokens, dim=1)
        mask = torch.cat([torch.ones_like(seen[..., 0], dtype=torch.bool), mask], dim=1)
        fused = torch.cat([seen, words], dim=1)
        for block in self.fusion:
            fused = block(fused, mask)
        steps = self.steps.expand(words.shape[0], -1, -1)
        for read, plan in zip(self.read, self.plan, strict=True):
            steps = plan(read(steps, fused, mask)[0])
        steps = self.normalise(steps)
        spread = self.spread(steps.detach())
        return self.mean(steps), functional.softplus(spread) + SMALLEST, looks
