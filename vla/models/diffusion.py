"""Diffusion policy: noise becomes a chunk of actions in a fixed number of denoising steps.

After Chi et al. 2023, "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion"
(github.com/real-stanford/diffusion_policy), trained as in Ho et al. 2020, "Denoising Diffusion Probabilistic
Models", and sampled without randomness as in Song et al. 2021, "Denoising Diffusion Implicit Models". What
the pictures and the command say is computed once, not at every step; the steps are unrolled, so that a trace
keeps them all. The denoiser predicts the clean chunk instead of the noise: at high noise that is plain
regression, from which the model learns what the words mean. The noise is an input, so that an answer depends
on its request alone. Sampling starts at the noisiest level, as Lin et al. 2024, "Common Diffusion Noise
Schedules and Sample Steps are Flawed", ask for.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.denoising import Denoiser, cosine_schedule
from vla.models.parts.mlp import mlp
from vla.models.parts.read_out import Perception


@dataclass(frozen=True)
class Config:
    """Sizes of the model and of its schedule."""

    # Vision and text encoder; see `Perception`.
    word_width: int = 64
    channels: int = 32
    depth: int = 3
    queries: int = 4
    keypoints: int = 8
    # Width, heads, perceptrons and blocks of the denoiser.
    width: int = 64
    heads: int = 4
    inner: int = 128
    layers: int = 2
    # Noise levels in training, and steps of the sampler.
    levels: int = 100
    steps: int = 10
    # Noise levels that each sample of a batch is trained at.
    draws: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.levels:
            raise ValueError(f"steps must be from 1 to levels = {self.levels}, got {self.steps}")

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(
            word_width=8,
            channels=8,
            depth=1,
            queries=2,
            keypoints=2,
            width=16,
            heads=2,
            inner=16,
            layers=1,
            steps=3,
        )

    @classmethod
    def base(cls) -> Self:
        """The denoiser of the paper's transformer: 8 blocks of width 256; 16 steps."""
        return cls(
            word_width=128,
            channels=64,
            depth=4,
            queries=8,
            keypoints=16,
            width=256,
            heads=4,
            inner=1024,
            layers=8,
            steps=16,
        )


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature; Lc is `queries` + 1: the queries, then the summary.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride.
    """

    stochastic = True
    masked = True

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.perception = Perception(
            sizes,
            width=config.word_width,
            channels=config.channels,
            depth=config.depth,
            queries=config.queries,
            keypoints=config.keypoints,
        )
        inputs = self.perception.flat_size + sizes.state + config.word_width
        self.condition_head = mlp(inputs, 2 * config.width, 1, config.width)
        self.denoiser = Denoiser(
            sizes, width=config.width, heads=config.heads, mlp_width=config.inner, layers=config.layers
        )
        # The share of the signal's variance at each level, often written as alpha bar.
        self.signal: Tensor
        self.register_buffer("signal", cosine_schedule(config.levels), persistent=False)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn words into queries: float32 [N, queries + 1, word_width], bool [N, queries + 1]."""
        return self.perception.encode_command(input_ids, attention_mask)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk that the noise becomes, and the queries' mean attention."""
        condition, attention = self._condition(images, command, state)
        return {
            "actions": self._sample(condition, noise),
            "attention": self.perception.attention_map(attention),
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the squared distance of the denoised chunk from the clean one, normalised."""
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        condition, _ = self._condition(batch.images, command, batch.per_command(batch.state))
        draws = self.config.draws
        condition = condition.repeat_interleave(draws, 0)
        clean = batch.actions.repeat_interleave(draws, 0)
        level = torch.randint(self.config.levels, (len(clean),), device=clean.device)
        signal = self.signal[level][:, None, None]
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * torch.randn_like(clean)
        return {"denoising": batch.squared_error(self._denoise(noisy, level, condition), clean)}

    def _condition(self, images: Tensor, command: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 [B * K, width] for commands float32 [B * K, ...], and the attention."""
        view = self.perception(images, command)
        features = torch.cat([view.flat(), state, command[:, -1]], dim=-1)
        return self.condition_head(features), view.attention

    def _denoise(self, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        return self.denoiser(noisy, (level + 1) / self.config.levels, condition)

    def _sample(self, condition: Tensor, chunk: Tensor) -> Tensor:
        """Denoise in `steps` deterministic steps, from the noisiest level."""
        steps, levels = self.config.steps, self.config.levels
        for step in range(steps):
            now, following = (levels - round(levels * i / steps) - 1 for i in (step, step + 1))
            level = torch.full_like(condition[:, 0], now)
            clean = self._denoise(chunk, level, condition)
            noise = (chunk - self.signal[now].sqrt() * clean) / (1 - self.signal[now]).sqrt()
            target = self.signal[following] if step + 1 < steps else torch.ones_like(self.signal[0])
            chunk = target.sqrt() * clean + (1 - target).sqrt() * noise
        return chunk
