"""CLIP's towers, one feature of each, and a perceptron over both.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision". The class token
stands for the picture, the end token for the command; both are projected to one width, and the action head
gets them, their product and the state. One vector would have to carry every position on the table, which a
short training does not teach it. So the head also gets where each head of the class token's last attention
looks, by the spatial soft arg-max of Levine et al. 2016, "End-to-End Training of Deep Visuomotor Policies",
weighted by the command; the tower computes this attention in any case.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.clip_towers import TowerConfig, towers
from vla.models.parts.mlp import ActionHead, mlp
from vla.models.parts.read_out import mixed, position_grid
from vla.models.parts.text import EPSILON


@dataclass(frozen=True)
class Config(TowerConfig):
    """Sizes of the model."""

    text_layers: int = 1
    text_inner: int = 128
    vision_width: int = 64
    vision_layers: int = 2
    # Heads also of the class token's attention that is read out.
    vision_heads: int = 8
    vision_inner: int = 128
    # 64 patches of a picture, of which self-attention is cheap.
    patch: int = 12
    # Width that both features are projected to.
    width: int = 64
    # Weightings of the class token's heads that the command makes.
    gates: int = 4
    # Width and hidden layers of the perceptron.
    hidden: int = 256
    layers: int = 2

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(
            text_width=8,
            text_heads=2,
            text_inner=16,
            vision_width=16,
            vision_layers=1,
            vision_heads=2,
            vision_inner=32,
            patch=16,
            width=8,
            gates=2,
            hidden=16,
            layers=1,
        )

    @classmethod
    def base(cls) -> Self:
        """The towers' sizes of CLIP ViT-B/32, for which pretrained weights are published."""
        return cls(
            text_width=512,
            text_layers=12,
            text_heads=8,
            text_inner=2048,
            vision_width=768,
            vision_layers=12,
            vision_heads=12,
            vision_inner=3072,
            patch=32,
            width=512,
            gates=8,
            hidden=512,
        )


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature; Lc is 1: the end token's projected feature.

    `config` is what it was made with, the sizes of a checkpoint filled in and its path left out.

    Raises:
        ValueError: the pictures' size is no multiple of the patch, or the commands do not fit the checkpoint.
        OSError: the checkpoint's folder is missing or holds no CLIP.
    """

    masked = True

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.text, self.vision = towers(config, sizes)
        self.sizes, config = sizes, self.config
        # Only the plain attention returns its weights.
        self.vision.set_attn_implementation("eager")
        self.edge = sizes.image_size // config.patch
        self.text_projection = nn.Linear(config.text_width, config.width)
        self.text_norm = nn.LayerNorm(config.width, eps=EPSILON)
        self.vision_projection = nn.Linear(config.vision_width, config.width)
        heads = sizes.cameras * config.vision_heads
        self.gate_head = mlp(config.width, 2 * config.width, 1, config.gates * heads)
        self.positions: Tensor
        self.register_buffer("positions", position_grid(self.edge, self.edge), persistent=False)
        inputs = (2 * sizes.cameras + 1) * config.width + 2 * config.gates + sizes.state
        self.action_head = ActionHead(inputs, config.hidden, config.layers, sizes)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the text tower: float32 [N, 1, width], bool [N, 1].

        The tower is causal and padding comes last, so that no token sees padding and it needs no mask.
        """
        end = self.text(input_ids=input_ids).pooler_output
        command = self.text_norm(self.text_projection(end)).unsqueeze(1)
        return command, torch.ones_like(command[..., 0], dtype=torch.bool)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk and the class token's attention, its heads weighted by the command."""
        features, attention = self._encode(images)
        actions, weights = self._decode(features, attention, command, state)
        return {
            "actions": actions,
            "attention": mixed(weights, attention).unflatten(-1, (self.edge, self.edge)),
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised."""
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        features, attention = (batch.per_command(part) for part in self._encode(batch.images))
        actions, _ = self._decode(features, attention, command, batch.per_command(batch.state))
        return {"actions": batch.squared_error(actions)}

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class tokens, float32 [B, C, width], and their heads' attention, [B, C, heads, P]."""
        vision = self.vision(pixel_values=images.flatten(0, 1), output_attentions=True)
        attention = vision.attentions[-1][:, :, 0, 1:]  # the class token on the patches
        attention = (attention / attention.sum(-1, keepdim=True)).unflatten(0, (-1, self.sizes.cameras))
        features = self.vision_projection(vision.pooler_output)
        return features.unflatten(0, (-1, self.sizes.cameras)), attention

    def _decode(
        self, features: Tensor, attention: Tensor, command: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return chunks float32 [N, T, A] and the heads' weights, float32 [N, gates, C * heads], sum to 1."""
        scores = self.gate_head(command[:, 0]).unflatten(-1, (self.config.gates, -1))
        weights = torch.softmax(scores, dim=-1)
        positions = (weights @ (attention @ self.positions).flatten(1, 2)).flatten(1)
        product = (features * command).flatten(1)
        return self.action_head(features.flatten(1), product, positions, command[:, 0], state), weights
