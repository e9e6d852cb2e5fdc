"""CLIP's text and vision towers (Radford et al. 2021, github.com/openai/CLIP) under an action decoder.

The towers are transformers' `CLIPTextModel` and `CLIPVisionModel`, with fresh weights or those of a local
checkpoint. Queries made from the command's end token attend over the image patches; where they look (soft
arg-max, Levine et al. 2016), a few features of what they see, the state and the command's tokens decide the
actions. The read-out is narrow on purpose: a decoder over pooled features learns its demonstrations by heart.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from vla.models import Batch, Sizes
from vla.models.spatial import attend, grid, multilayer, read_out

# The end of text in CLIP's vocabulary; its feature stands for the whole command.
END_ID = 49407
POSITIONS = "embeddings.position_embedding.weight"


@dataclass(frozen=True)
class Config:
    """Sizes of the model; those of the towers come from `checkpoint` where one is given."""

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
    # Width that both towers are projected to.
    width: int = 64
    # Queries that the command makes; their attention is reported.
    queries: int = 4
    # Features that a query reports of what it sees.
    features: int = 16
    # Width and hidden layers of the action decoder.
    hidden: int = 256
    layers: int = 2
    # Whether the towers keep their weights in training; for pretrained ones.
    frozen: bool = False
    # Local folder of a CLIP checkpoint as transformers saves it; None: fresh weights.
    checkpoint: str | None = None

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(
            text_width=8,
            text_layers=1,
            text_heads=2,
            text_inner=16,
            vision_width=16,
            vision_layers=1,
            vision_heads=2,
            vision_inner=32,
            patch=16,
            width=8,
            queries=2,
            features=4,
            hidden=16,
            layers=1,
        )

    @classmethod
    def base(cls) -> Self:
        """The towers' sizes of CLIP ViT-B/16, for which pretrained weights are published."""
        return cls(
            text_width=512,
            text_layers=12,
            text_heads=8,
            text_inner=2048,
            vision_width=768,
            vision_layers=12,
            vision_heads=12,
            vision_inner=3072,
            patch=16,
            width=512,
            queries=8,
            features=32,
            hidden=512,
        )


class Model(nn.Module):
    """See `vla.models` for the signature; Lc is L + 1: the end token's feature, then those of all tokens.

    `config` is what it was made with, the sizes of a checkpoint filled in and its path left out.

    Raises:
        ValueError: the pictures' size is no multiple of the patch, or the commands do not fit the checkpoint.
        OSError: the checkpoint's folder is missing or holds no CLIP.
    """

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        if config.checkpoint:
            config, self.text, self.vision = _pretrained(Path(config.checkpoint), config, sizes)
        else:
            self.text, self.vision = _fresh(config, sizes)
        self.config, self.sizes = config, sizes
        self.text.requires_grad_(not config.frozen)
        self.vision.requires_grad_(not config.frozen)
        width, edge = config.width, sizes.image_size // config.patch
        self.text_projection = nn.Linear(config.text_width, width)
        self.vision_projection = nn.Linear(config.vision_width, width)
        self.ask = multilayer(width, 2 * width, 1, config.queries * width)
        self.importance = nn.Linear(width, 1)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, config.features)
        self.centres: Tensor
        self.register_buffer("centres", grid(edge, edge), persistent=False)
        seen = sizes.cameras * config.queries * (2 + config.features)
        outputs = sizes.horizon * sizes.action
        self.decide = multilayer(seen + sizes.state + 2 * width, config.hidden, config.layers, outputs)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the text tower: float32 [N, L + 1, width], bool [N, L + 1].

        The tower is causal and padding comes last, so that no token sees padding and it needs no mask.
        """
        text = self.text(input_ids=input_ids)
        tokens = torch.cat([text.pooler_output.unsqueeze(1), text.last_hidden_state], dim=1)
        mask = torch.cat([torch.ones_like(attention_mask[:, :1]), attention_mask], dim=1).bool()
        return self.text_projection(tokens), mask

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk and the queries' mean attention over the patches."""
        seen, weights = self._look(images, command[:, 0], told=1)
        edge = self.sizes.image_size // self.config.patch
        attention = weights.mean(2).unflatten(-1, (edge, edge))
        return {"actions": self._decide(seen, command, command_mask, state), "attention": attention}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised.

        A median would leave the fingers open, for they close in few frames; a mean does not.
        """
        command, mask = self.encode_command(batch.input_ids, batch.attention_mask)
        told = batch.commands_per_frame
        seen, _ = self._look(batch.images, command[:, 0], told)
        actions = self._decide(seen, command, mask, batch.state.repeat_interleave(told, 0))
        return {"actions": functional.mse_loss(actions, batch.actions)}

    def _look(self, images: Tensor, end: Tensor, told: int) -> tuple[Tensor, Tensor]:
        """Look at each frame with the queries of its K = `told` commands.

        Args:
            images: float32 [B, C, 3, H, W]
            end: float32 [B * K, width], the end tokens' features
            told: K

        Returns:
            what each command sees, float32 [B * K, V], and the attention, float32 [B, C, K * queries, P]
        """
        vision = self.vision(pixel_values=images.flatten(0, 1)).last_hidden_state[:, 1:]
        patches = self.vision_projection(self.vision.post_layernorm(vision))
        patches = patches.unflatten(0, (-1, self.sizes.cameras))  # [B, C, P, width]
        queries = self.ask(end).reshape(-1, told * self.config.queries, self.config.width)
        weights = attend(queries, self.keys(patches))
        return read_out(weights, self.values(patches), self.centres, told).flatten(0, 1), weights

    def _decide(self, seen: Tensor, command: Tensor, mask: Tensor, state: Tensor) -> Tensor:
        importance = self.importance(command).masked_fill(~mask.unsqueeze(-1), -1e9)  # [N, Lc, 1]
        summary = (torch.softmax(importance, dim=1) * command).sum(1)
        known = torch.cat([seen, state, command[:, 0], summary], dim=-1)
        return self.decide(known).unflatten(-1, (self.sizes.horizon, self.sizes.action))


def _fresh(config: Config, sizes: Sizes) -> tuple[CLIPTextModel, CLIPVisionModel]:
    """Make both towers with fresh weights."""
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


def _pretrained(folder: Path, config: Config, sizes: Sizes) -> tuple[Config, CLIPTextModel, CLIPVisionModel]:
    """Load both towers from a local checkpoint, fitted to the policy's commands and pictures."""
    options: dict[str, Any] = {"local_files_only": True, "dtype": torch.float32}
    old_text = CLIPTextModel.from_pretrained(folder, **options)
    old_vision = CLIPVisionModel.from_pretrained(folder, **options)
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


def _sizes_of(config: Config, text: CLIPTextConfig, vision: CLIPVisionConfig) -> Config:
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
