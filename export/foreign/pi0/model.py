"""pi0: PaliGemma reads pictures and command once, a smaller expert beside it turns noise into actions.

After Black et al. 2024, "pi0: A Vision-Language-Action Flow Model for General Robot Control". The actions'
tokens attend to all, the state's token to all but them; the prefix attends to itself alone, so its keys and
values are computed once for all steps of the flow, which runs from 1 (noise) to 0 (actions).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import gemma, siglip


@dataclass(frozen=True)
class Config:
    """The sizes of a pi0; widths of the state and of an action are those it works with, mostly 32."""

    vision: siglip.Sizes
    language: gemma.Sizes
    expert: gemma.Sizes
    vocabulary: int
    state: int
    action: int
    # Actions in a chunk, and steps of the flow.
    horizon: int
    steps: int
    # Shortest and longest wave of the time's embedding.
    min_period: float
    max_period: float


class Pi0(nn.Module):
    """An `export.source.ExportableModel`; noise is [B, horizon, action]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.expert.width
        self.vision = siglip.SigLIP(config.vision)
        self.projector = nn.Linear(config.vision.width, config.language.width)
        self.embed_tokens = nn.Embedding(config.vocabulary, config.language.width)
        self.language = gemma.Gemma(config.language)
        self.expert = gemma.Gemma(config.expert)
        self.norm = gemma.RMSNorm(width)
        self.state_proj = nn.Linear(config.state, width)
        self.action_in_proj = nn.Linear(config.action, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)
        self.action_out_proj = nn.Linear(width, config.action)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Embed commands; an id beyond the table, as of PaliGemma's `<image>`, is read as its last entry."""
        known = input_ids.clamp(max=self.config.vocabulary - 1)
        tokens = self.embed_tokens(known) * math.sqrt(self.config.language.width)
        return {"tokens": tokens, "mask": attention_mask.bool()}

    def act(
        self, images: dict[str, Tensor], command: dict[str, Tensor], state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Compute one chunk; see `export.source.ExportableModel`. Pictures are in [-1, 1]."""
        seen = self._seen(list(images.values()))
        valid = torch.cat([torch.ones_like(seen[..., 0], dtype=torch.bool), command["mask"]], 1)  # [B, P]
        prefix = torch.cat([seen, command["tokens"]], 1)
        _, past = self.language(prefix, valid.long().cumsum(1) - 1, valid[:, None, None])
        positions, mask = self._suffix(valid)
        measured = self.state_proj(state).unsqueeze(1)  # [B, 1, width]
        actions, steps = noise, self.config.steps
        for step in range(steps):
            tokens = torch.cat([measured, self._noisy(actions, 1 - step / steps)], 1)
            tokens, _ = self.expert(tokens, positions, mask, past)
            actions = actions - self.action_out_proj(self.norm(tokens[:, 1:])) / steps
        return {"actions": actions}

    def _seen(self, pictures: list[Tensor]) -> Tensor:
        """Return the tokens of all cameras' pictures, float32 [B, C * patches, width]."""
        fitted = torch.stack([letterboxed(picture, self.config.vision.picture) for picture in pictures], 1)
        tokens = self.projector(self.vision(fitted.flatten(0, 1)))
        return tokens.unflatten(0, (-1, len(pictures))).flatten(1, 2)

    def _suffix(self, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions of state and actions [B, 1 + T], and what they see: bool [B, 1, 1 + T, all]."""
        places = torch.arange(1 + self.config.horizon, device=valid.device)
        own = (places == 0) | (places[:, None] > 0)  # the state does not see the actions
        before = valid.unsqueeze(1).expand(-1, len(places), -1)
        mask = torch.cat([before, own.expand(valid.shape[0], -1, -1)], -1)
        return valid.sum(1, keepdim=True) + places, mask.unsqueeze(1)

    def _noisy(self, actions: Tensor, time: float) -> Tensor:
        """Return the tokens of noisy actions at a time of the flow, float32 [B, T, width]."""
        embedded = self.action_in_proj(actions)
        moment = self._moment(time, actions).expand_as(embedded)
        hidden = functional.silu(self.action_time_mlp_in(torch.cat([embedded, moment], -1)))
        return self.action_time_mlp_out(hidden)

    def _moment(self, time: float, like: Tensor) -> Tensor:
        config = self.config
        half = config.expert.width // 2
        places = torch.linspace(0.0, 1.0, half, dtype=torch.float64, device=like.device)
        periods = config.min_period * (config.max_period / config.min_period) ** places
        angles = 2 * math.pi * time / periods
        return torch.cat([angles.sin(), angles.cos()]).float()  # [width]


def letterboxed(pictures: Tensor, size: int) -> Tensor:
    """Fit pictures [B, 3, H, W] in [-1, 1] into a square, centred on black.

    Bilinear and without antialiasing, as LeRobot's `resize_with_pad_torch`; Pillow's filter differs.
    """
    height, width = int(pictures.shape[-2]), int(pictures.shape[-1])
    if height == width == size:
        return pictures
    ratio = max(width / size, height / size)
    tall, wide = int(height / ratio), int(width / ratio)
    resized = functional.interpolate(pictures, (tall, wide), mode="bilinear", align_corners=False)
    (top, below), (left, right) = ((spare // 2, spare - spare // 2) for spare in (size - tall, size - wide))
    return functional.pad(resized, (left, right, top, below), value=-1.0)


def build(vision: dict[str, int], language: dict[str, int], expert: dict[str, int], **sizes: Any) -> Pi0:
    """Build the module of an `eager` archive from `Config`, as JSON has it."""
    parts = siglip.Sizes(**vision), gemma.Sizes(**language), gemma.Sizes(**expert)
    return Pi0(Config(*parts, **sizes))
