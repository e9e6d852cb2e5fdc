"""CLIP's towers (Radford et al. 2021, github.com/openai/CLIP), transformers' own: fresh or from a folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from vla.models import END_ID, Sizes
from vla.models.parts.published_files import load_published

POSITIONS = "embeddings.position_embedding.weight"


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of the towers; they come from `checkpoint` where one is given."""

    published: ClassVar[dict[str, str]] = {"clip": "checkpoint"}

    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 4
    # Width of the perceptrons in the tower's layers.
    text_inner: int = 256
    vision_width: int = 128
    vision_layers: int = 3
    vision_heads: int = 4
    vision_inner: int = 256
    # Edge of a patch [pixels].
    patch: int = 8
    activation: str = "quick_gelu"
    # Whether the towers keep their weights in training; for pretrained ones.
    frozen: bool = False
    # Local folder of a CLIP checkpoint as transformers saves it; None: fresh weights.
    checkpoint: str | None = None


C = TypeVar("C", bound=TowerConfig)


def towers(config: C, sizes: Sizes) -> tuple[C, CLIPTextModel, CLIPVisionModel]:
    """Make both towers.

    Returns:
        the configuration with the sizes of its checkpoint filled in and its path left out, and the towers

    Raises:
        ValueError: the pictures' size is no multiple of the patch, or the checkpoint is of another kind or
            does not fit the commands.
        OSError: the checkpoint's folder is missing or holds no CLIP.
    """
    if config.checkpoint:
        config, text, vision = _pretrained(Path(config.checkpoint), config, sizes)
    else:
        text, vision = _fresh(config, sizes)
    text.requires_grad_(not config.frozen)
    vision.requires_grad_(not config.frozen)
    return config, text, vision


def _fresh(config: TowerConfig, sizes: Sizes) -> tuple[CLIPTextModel, CLIPVisionModel]:
    if sizes.image_size % config.patch:
        raise ValueError(f"image_size must be a multiple of {config.patch}, got {sizes.image_size}")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=config.text_width,
            intermediate_size=config.text_inner,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=sizes.context_length,
            hidden_act=config.activation,
            eos_token_id=END_ID,
        )
    )
    # Zero vectors: a word that training never met is less of a disturbance.
    nn.init.zeros_(text.embeddings.token_embedding.weight)
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config.vision_width,
            intermediate_size=config.vision_inner,
            num_hidden_layers=config.vision_layers,
            num_attention_heads=config.vision_heads,
            image_size=sizes.image_size,
            patch_size=config.patch,
            hidden_act=config.activation,
        )
    )
    return text, vision


def _pretrained(folder: Path, config: C, sizes: Sizes) -> tuple[C, CLIPTextModel, CLIPVisionModel]:
    """Load both towers from a local checkpoint, fitted to the policy's commands and pictures."""
    old_text = load_published(CLIPTextModel, folder)
    old_vision = load_published(CLIPVisionModel, folder)
    config = _sizes_of(config, old_text.config, old_vision.config)
    longest, vocabulary = old_text.config.max_position_embeddings, old_text.config.vocab_size
    if sizes.context_length > longest or sizes.vocabulary != vocabulary:
        raise ValueError(
            f"{folder} reads {longest} tokens of a vocabulary of {vocabulary}; the policy has "
            f"context_length {sizes.context_length} and a vocabulary of {sizes.vocabulary}"
        )
    text, vision = _fresh(config, sizes)
    weights = old_text.state_dict()
    text.load_state_dict(weights | {POSITIONS: weights[POSITIONS][: sizes.context_length]})
    weights = old_vision.state_dict()
    edge = sizes.image_size // config.patch
    vision.load_state_dict(weights | {POSITIONS: _resample(weights[POSITIONS], edge)})
    return config, text, vision


def _sizes_of(config: C, text: CLIPTextConfig, vision: CLIPVisionConfig) -> C:
    return replace(
        config,
        text_width=text.hidden_size,
        text_layers=text.num_hidden_layers,
        text_heads=text.num_attention_heads,
        text_inner=text.intermediate_size,
        vision_width=vision.hidden_size,
        vision_layers=vision.num_hidden_layers,
        vision_heads=vision.num_attention_heads,
        vision_inner=vision.intermediate_size,
        patch=vision.patch_size,
        activation=text.hidden_act,
        checkpoint=None,
    )


def _resample(positions: Tensor, edge: int) -> Tensor:
    """Fit the patches' position vectors, float32 [1 + p * p, D], to `edge` x `edge` patches (bicubic)."""
    first, patches = positions[:1], positions[1:]
    old = round(len(patches) ** 0.5)
    if old == edge:
        return positions
    square = patches.T.unflatten(1, (old, old)).unsqueeze(0)  # [1, D, p, p]
    fitted = functional.interpolate(square, size=(edge, edge), mode="bicubic", align_corners=False)
    return torch.cat([first, fitted.squeeze(0).flatten(1).T])
