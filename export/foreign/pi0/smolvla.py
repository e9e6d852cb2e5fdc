"""SmolVLA: SmolVLM reads pictures, command and state once, an expert beside it turns noise into actions.

After Shukor et al. 2025, "SmolVLA: A Vision-Language-Action Model for Affordable and Efficient Robotics", and
LeRobot's `policies/smolvla`. Every n-th layer of the expert attends to the actions up to each one and to the
prefix, the others to the prefix alone. The flow runs from 1 (noise) to 0 (actions).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import gemma, llama, siglip
from .guidance import Guided, Kind
from .model import float32, moment


@dataclass(frozen=True)
class Config:
    """The sizes; widths of the state and of an action are those it works with, mostly 32."""

    vision: siglip.Sizes
    language: llama.Sizes
    expert: llama.Sizes
    vocabulary: int
    # Patches along an edge of the pictures that the tower was made for, and of those that become one token.
    trained: int
    merged: int
    state: int
    action: int
    # Actions in a chunk, and steps of the flow.
    horizon: int
    steps: int
    # Shortest and longest wave of the time's embedding.
    min_period: float
    max_period: float
    # Layers of the expert from one that attends to the actions to the next, from the first on; 0: none does.
    own_every: int
    # How a chunk is drawn towards given first actions; see `guidance`.
    guidance: Kind | None = None


class Embeddings(siglip.Embeddings):
    """Patches to tokens, with positions that were learnt in pictures of another size."""

    def __init__(self, sizes: siglip.Sizes, trained: int) -> None:
        """Build it for pictures that had so many patches along an edge."""
        super().__init__(sizes)
        self.shown, self.trained = sizes.picture // sizes.patch, trained
        self.position_embedding = nn.Embedding(trained**2, sizes.width)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return tokens float32 [N, patches, width]."""
        patches = self.patch_embedding(pictures).flatten(2).transpose(1, 2)
        along = places(self.shown, self.trained, pictures.device)
        both = (along[:, None] * self.trained + along).flatten()
        return patches + self.position_embedding(both).float()


class SmolVLA(Guided):
    """An `export.source.ExportableModel`; noise is [B, horizon, action]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.guidance = config, config.guidance
        language, expert = config.language, config.expert
        self.vision = siglip.SigLIP(config.vision)
        if not _identical(config):
            self.vision.embeddings = Embeddings(config.vision, config.trained)
        self.projector = nn.Linear(config.vision.width * config.merged**2, language.width, bias=False)
        self.embed_tokens = nn.Embedding(config.vocabulary, language.width)
        self.language = nn.ModuleList(
            llama.Layer(language, llama.Attention(language)) for _ in range(language.depth)
        )
        self.expert = nn.ModuleList(
            llama.Layer(expert, _attention(config, place)) for place in range(expert.depth)
        )
        self.norm = llama.RMSNorm(expert)
        self.state_proj = nn.Linear(config.state, language.width)
        self.action_in_proj = nn.Linear(config.action, expert.width)
        self.action_out_proj = nn.Linear(expert.width, config.action)
        self.action_time_mlp_in = nn.Linear(2 * expert.width, expert.width)
        self.action_time_mlp_out = nn.Linear(expert.width, expert.width)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Embed commands."""
        tokens = self.embed_tokens(input_ids) * math.sqrt(self.config.language.width)
        return {"tokens": tokens, "mask": attention_mask.bool()}

    def _chunk(
        self,
        images: dict[str, Tensor],
        command: dict[str, Tensor],
        state: Tensor,
        noise: Tensor,
        *given: Tensor,
    ) -> Tensor:
        """Return the chunk float32 [B, T, A]."""
        config = self.config
        valid, past = self._prefix(images, command, state)
        order = torch.arange(config.horizon, device=valid.device)
        before = valid[:, None, None]  # [B, 1, 1, P]
        own = (order <= order[:, None]).expand(valid.shape[0], 1, -1, -1)
        both = torch.cat([before.expand(-1, -1, config.horizon, -1), own], -1)
        # What attends to the prefix alone counts the actions from 0.
        first = gemma.rotations(order[None], config.expert.head_dim)
        later = gemma.rotations(valid.sum(1, keepdim=True) + order, config.expert.head_dim)

        def velocity(actions: Tensor, time: float) -> Tensor:
            tokens = self._noisy(actions, time)
            for layer, kept in zip(self.expert, past, strict=True):
                rotation, mask = (first, before) if layer.crosses else (later, both)
                tokens, _ = layer(tokens, rotation, mask, kept)
            return self.action_out_proj(self.norm(tokens))

        times = [float32(1 - step / config.steps) for step in range(config.steps)]
        return self._flowed(velocity, noise, times, given)

    def _prefix(
        self, images: dict[str, Tensor], command: dict[str, Tensor], state: Tensor
    ) -> tuple[Tensor, list[gemma.KeysValues]]:
        """Return which tokens of the prefix count, bool [B, P], and their keys and values, by layer."""
        seen = self._seen(list(images.values()))
        measured = self.state_proj(state).unsqueeze(1)  # [B, 1, width]
        valid = torch.cat([_all(seen), command["mask"], _all(measured)], 1)
        tokens = torch.cat([seen, command["tokens"], measured], 1)
        rotation = gemma.rotations(valid.long().cumsum(1) - 1, self.config.language.head_dim)
        # The state comes last and sees all; nothing else sees it.
        last = torch.arange(valid.shape[1], device=valid.device) == valid.shape[1] - 1
        mask = (valid[:, None] & (last[:, None] | ~last)).unsqueeze(1)
        past = []
        for layer in self.language:
            tokens, kept = layer(tokens, rotation, mask, None)
            past.append(kept)
        return valid, past

    def _seen(self, pictures: list[Tensor]) -> Tensor:
        """Return the tokens of all cameras' pictures, float32 [B, C * tokens, width]."""
        fitted = torch.stack([letterboxed(picture, self.config.vision.picture) for picture in pictures], 1)
        merged = merged_patches(self.vision(fitted.flatten(0, 1)), self.config.merged)
        tokens = self.projector(merged) * math.sqrt(self.config.language.width)
        return tokens.unflatten(0, (-1, len(pictures))).flatten(1, 2)

    def _noisy(self, actions: Tensor, time: float) -> Tensor:
        """Return the tokens of noisy actions at a time of the flow, float32 [B, T, width]."""
        config = self.config
        embedded = self.action_in_proj(actions)
        periods = config.min_period, config.max_period
        waves = moment(time, config.expert.width, periods, actions.device).expand_as(embedded)
        hidden = functional.silu(self.action_time_mlp_in(torch.cat([embedded, waves], -1)))
        return self.action_time_mlp_out(hidden)


def merged_patches(tokens: Tensor, edge: int) -> Tensor:
    """Make one token of `edge` x `edge` neighbours: [N, patches, width] to [N, patches / edge^2, ...]."""
    side = math.isqrt(tokens.shape[1]) // edge
    return tokens.unflatten(1, (side, edge, side, edge)).transpose(2, 3).flatten(3).flatten(1, 2)


def places(shown: int, trained: int, device: torch.device | str) -> Tensor:
    """Return the learnt position of each patch along an edge: int64 [shown].

    As transformers' `SmolVLMVisionEmbeddings`, rounding included.
    """
    borders = torch.arange(1 / trained, 1.0, 1 / trained, device=device)
    along = torch.arange(shown, dtype=torch.float32, device=device)
    step = 1.0 / torch.full((), shown, device=device)
    return torch.bucketize((along * step).clamp(max=1.0 - 1e-6), borders, right=True)


def letterboxed(pictures: Tensor, size: int) -> Tensor:
    """Fit pictures [B, 3, H, W] in [-1, 1] into a square, with black above or left of them.

    Bilinear and without antialiasing, as LeRobot's `resize_with_pad`.
    """
    height, width = int(pictures.shape[-2]), int(pictures.shape[-1])
    if height == width == size:
        return pictures
    ratio = max(width / size, height / size)
    tall, wide = int(height / ratio), int(width / ratio)
    resized = functional.interpolate(pictures, (tall, wide), mode="bilinear", align_corners=False)
    return functional.pad(resized, (size - wide, 0, size - tall, 0), value=-1.0)


def build(vision: dict[str, int], language: dict[str, Any], expert: dict[str, Any], **sizes: Any) -> SmolVLA:
    """Build the module of an `eager` archive from `Config`, as JSON has it."""
    parts = siglip.Sizes(**vision), llama.Sizes(**language), llama.Sizes(**expert)
    return SmolVLA(Config(*parts, **sizes))


def _attention(config: Config, place: int) -> llama.Attention:
    if config.own_every and place % config.own_every == 0:
        return llama.Attention(config.expert)
    return llama.CrossAttention(config.expert, config.language.kv_heads * config.language.head_dim)


def _identical(config: Config) -> bool:
    """Whether the tower sees pictures of the size that it was made for, each patch at its own position."""
    shown = config.vision.picture // config.vision.patch
    return places(shown, config.trained, "cpu").tolist() == list(range(config.trained))


def _all(tokens: Tensor) -> Tensor:
    return torch.ones_like(tokens[..., 0], dtype=torch.bool)
