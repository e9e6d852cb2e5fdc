"""pi0 and pi0.5: PaliGemma reads pictures and command once, an expert beside it turns noise into actions.

After Black et al. 2024, "pi0: A Vision-Language-Action Flow Model for General Robot Control", and Physical
Intelligence 2025, "pi0.5: a Vision-Language-Action Model with Open-World Generalization". The actions' tokens
attend to all, pi0's token of the state to all but them; the prefix attends to itself alone, so its keys and
values are computed once for all steps of the flow, which runs from 1 (noise) to 0 (actions). In pi0.5 the
state is part of the command's text, and the expert's norms follow the time of the flow.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import gemma, siglip
from .guidance import Guided, Kind


@dataclass(frozen=True)
class Config:
    """The sizes of either; widths of the state and of an action are those it works with, mostly 32."""

    vision: siglip.Sizes
    language: gemma.Sizes
    expert: gemma.Sizes
    vocabulary: int
    # None: the expert is told no state (pi0.5).
    state: int | None
    action: int
    # Actions in a chunk, and steps of the flow.
    horizon: int
    steps: int
    # Shortest and longest wave of the time's embedding.
    min_period: float
    max_period: float
    # Whether the time is counted down in float32, as by openpi: its shortest wave shows the rounding.
    counted_down: bool = False
    # How a chunk is drawn towards given first actions; see `guidance`.
    guidance: Kind | None = None

    @property
    def times(self) -> tuple[float, ...]:
        """The time of the flow at each of its steps, from 1 on."""
        if not self.counted_down:
            return tuple(1 - step / self.steps for step in range(self.steps))
        times = [1.0]
        for _ in range(self.steps - 1):
            times.append(float32(times[-1] - float32(1 / self.steps)))
        return tuple(times)


def float32(value: float) -> float:
    """Round to what float32 can hold."""
    return struct.unpack("f", struct.pack("f", value))[0]


class Flow(Guided):
    """What both share: the prefix, and the noisy actions' way through the expert and back.

    An `export.source.ExportableModel`; noise is [B, horizon, action].
    """

    def __init__(self, config: Config, *, adaptive: bool) -> None:
        super().__init__()
        self.config, self.guidance = config, config.guidance
        width = config.expert.width
        self.vision = siglip.SigLIP(config.vision)
        self.projector = nn.Linear(config.vision.width, config.language.width)
        self.embed_tokens = nn.Embedding(config.vocabulary, config.language.width)
        self.language = gemma.Gemma(config.language)
        self.expert = gemma.Gemma(config.expert, adaptive=adaptive)
        self.action_in_proj = nn.Linear(config.action, width)
        self.action_out_proj = nn.Linear(width, config.action)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Embed commands; an id beyond the table, as of PaliGemma's `<image>`, is read as its last entry."""
        known = input_ids.clamp(max=self.config.vocabulary - 1)
        tokens = self.embed_tokens(known) * math.sqrt(self.config.language.width)
        return {"tokens": tokens, "mask": attention_mask.bool()}

    def _prefix(
        self, images: dict[str, Tensor], command: dict[str, Tensor]
    ) -> tuple[Tensor, list[gemma.KeysValues]]:
        """Return which tokens of the prefix count, bool [B, P], and their keys and values."""
        seen = self._seen(list(images.values()))
        valid = torch.cat([torch.ones_like(seen[..., 0], dtype=torch.bool), command["mask"]], 1)
        prefix = torch.cat([seen, command["tokens"]], 1)
        _, past = self.language(prefix, valid.long().cumsum(1) - 1, valid[:, None, None])
        return valid, past

    def _seen(self, pictures: list[Tensor]) -> Tensor:
        """Return the tokens of all cameras' pictures, float32 [B, C * patches, width]."""
        fitted = torch.stack([letterboxed(picture, self.config.vision.picture) for picture in pictures], 1)
        tokens = self.projector(self.vision(fitted.flatten(0, 1)))
        return tokens.unflatten(0, (-1, len(pictures))).flatten(1, 2)

    def _suffix(self, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions of the suffix [B, Q], and what its tokens see: bool [B, 1, Q, P + Q]."""
        state = self.config.state is not None
        places = torch.arange(state + self.config.horizon, device=valid.device)
        # A state does not see the actions.
        own = (places == 0) | (places[:, None] > 0) if state else torch.ones_like(places, dtype=torch.bool)
        before = valid.unsqueeze(1).expand(-1, len(places), -1)
        mask = torch.cat([before, own.expand(valid.shape[0], len(places), -1)], -1)
        return valid.sum(1, keepdim=True) + places, mask.unsqueeze(1)

    def _moment(self, time: float, like: Tensor) -> Tensor:
        """Return the waves of a time of the flow, float32 [width]."""
        config = self.config
        return moment(time, config.expert.width, (config.min_period, config.max_period), like.device)


class Pi0(Flow):
    """The state is a token of the expert, and the time is mixed into those of the actions."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, adaptive=False)
        width = config.expert.width
        self.norm = gemma.RMSNorm(width)
        self.state_proj = nn.Linear(config.state or 0, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)

    def _chunk(
        self,
        images: dict[str, Tensor],
        command: dict[str, Tensor],
        state: Tensor,
        noise: Tensor,
        *given: Tensor,
    ) -> Tensor:
        """Return the chunk float32 [B, T, A]."""
        valid, past = self._prefix(images, command)
        positions, mask = self._suffix(valid)
        measured = self.state_proj(state).unsqueeze(1)  # [B, 1, width]

        def velocity(actions: Tensor, time: float) -> Tensor:
            tokens = torch.cat([measured, self._noisy(actions, time)], 1)
            tokens, _ = self.expert(tokens, positions, mask, past)
            return self.action_out_proj(self.norm(tokens[:, 1:]))

        return self._flowed(velocity, noise, self.config.times, given)

    def _noisy(self, actions: Tensor, time: float) -> Tensor:
        """Return the tokens of noisy actions at a time of the flow, float32 [B, T, width]."""
        embedded = self.action_in_proj(actions)
        moment = self._moment(time, actions).expand_as(embedded)
        hidden = functional.silu(self.action_time_mlp_in(torch.cat([embedded, moment], -1)))
        return self.action_time_mlp_out(hidden)


class Pi05(Flow):
    """The state comes with the command, and the time conditions every norm of the expert."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, adaptive=True)
        width = config.expert.width
        self.norm = gemma.AdaptiveRMSNorm(width)
        self.time_mlp_in = nn.Linear(width, width)
        self.time_mlp_out = nn.Linear(width, width)

    def _chunk(
        self,
        images: dict[str, Tensor],
        command: dict[str, Tensor],
        state: Tensor,
        noise: Tensor,
        *given: Tensor,
    ) -> Tensor:
        """Return the chunk float32 [B, T, A]."""
        valid, past = self._prefix(images, command)
        positions, mask = self._suffix(valid)

        def velocity(actions: Tensor, time: float) -> Tensor:
            moment = functional.silu(self.time_mlp_in(self._moment(time, actions)))
            condition = functional.silu(self.time_mlp_out(moment))
            tokens, _ = self.expert(self.action_in_proj(actions), positions, mask, past, condition)
            tokens, _ = self.norm(tokens, condition)
            return self.action_out_proj(tokens)

        return self._flowed(velocity, noise, self.config.times, given)


def moment(time: float, width: int, periods: tuple[float, float], device: torch.device) -> Tensor:
    """Return sines and cosines of a time of the flow, float32 [width], between two periods."""
    places = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=device)
    shortest, longest = periods
    angles = 2 * math.pi * time / (shortest * (longest / shortest) ** places)
    return torch.cat([angles.sin(), angles.cos()]).float()


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


def pi(config: Config) -> Flow:
    """Return the module of a configuration, with weights of no meaning."""
    return Pi05(config) if config.state is None else Pi0(config)


def build(vision: dict[str, int], language: dict[str, int], expert: dict[str, int], **sizes: Any) -> Flow:
    """Build the module of an `eager` archive from `Config`, as JSON has it."""
    parts = siglip.Sizes(**vision), gemma.Sizes(**language), gemma.Sizes(**expert)
    return pi(Config(*parts, **sizes))
