"""CLIP's text and vision towers under an action head.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
(github.com/openai/CLIP). The towers are transformers' `CLIPTextModel` and `CLIPVisionModel`, with fresh
weights or those of a local checkpoint. Queries made from the command's end token attend over the image
patches; where they look, by the spatial soft arg-max of Levine et al. 2016, "End-to-End Training of Deep
Visuomotor Policies", a few features of what they see, the state and the command's tokens decide the actions.
The read-out is narrow on purpose: a head over pooled features learns its demonstrations by heart.

It returns no similarity of image and command as a confidence. Every block is in every picture, so that every
command fits and CLIP's contrast has nothing to tell apart; and trained for actions alone, the features of the
two towers share no scale on which a cosine would mean a chance of success.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.clip_towers import TowerConfig, towers
from vla.models.parts.mlp import ActionHead
from vla.models.parts.read_out import QueryReadOut
from vla.models.parts.text import AttentionPooling


@dataclass(frozen=True)
class Config(TowerConfig):
    """Sizes of the model."""

    # Width that both towers are projected to.
    width: int = 64
    # Queries that the command makes; their attention is reported.
    queries: int = 4
    # Features that a query reports of what it sees.
    features: int = 16
    # Width and hidden layers of the action decoder.
    hidden: int = 256
    layers: int = 2
    # Weight of the loss that draws each command's first query to the object that is meant; 0: none.
    grounding: float = 0.03

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


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature; Lc is L + 1: the end token's feature, then those of all tokens.

    `config` is what it was made with, the sizes of a checkpoint filled in and its path left out.

    Raises:
        ValueError: the pictures' size is no multiple of the patch, or the commands do not fit the checkpoint.
        OSError: the checkpoint's folder is missing or holds no CLIP.
    """

    privileged = ("target", "boxes")

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        config, self.text, self.vision = towers(config, sizes)
        self.config, self.sizes = config, sizes
        width, edge = config.width, sizes.image_size // config.patch
        self.text_projection = nn.Linear(config.text_width, width)
        self.vision_projection = nn.Linear(config.vision_width, width)
        self.pooling = AttentionPooling(width)
        self.read_out = QueryReadOut(
            sizes.cameras, edge, width, width, queries=config.queries, features=config.features
        )
        inputs = self.read_out.size + sizes.state + 2 * width
        self.action_head = ActionHead(inputs, config.hidden, config.layers, sizes)

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
        actions, weights = self._decode(images, command, command_mask, state)
        return {"actions": actions, "attention": self.read_out.attention_map(weights)}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the normalised chunk's mean squared error, and how far first queries stray from the target.

        A median would leave the fingers open, for they close in few frames; a mean does not. Towers with
        fresh weights find the objects in minutes only when boxes say where these are.
        """
        command, mask = self.encode_command(batch.input_ids, batch.attention_mask)
        actions, weights = self._decode(batch.images, command, mask, batch.per_command(batch.state))
        first = weights[:, :, :: self.config.queries]  # [B, C, K, P]
        return {
            "actions": functional.mse_loss(actions, batch.actions),
            "grounding": self.config.grounding * self._stray(first, batch),
        }

    def _stray(self, weights: Tensor, batch: Batch) -> Tensor:
        """Return the negative logarithm of the attention on patches that touch the target's box.

        Args:
            weights: float32 [B, C, K, P], attention of one query a command
            batch: the frames and commands
        """
        target = batch.target.unflatten(0, (len(weights), -1))[:, None, :, None]  # [B, 1, K, 1]
        box = batch.boxes.gather(2, target.expand(-1, weights.shape[1], -1, 4)).unsqueeze(
            3
        )  # [B, C, K, 1, 4]
        centres, margin = (self.read_out.positions + 1) / 2, 0.5 * self.config.patch / self.sizes.image_size
        inside = ((centres > box[..., :2] - margin) & (centres < box[..., 2:] + margin)).all(-1)
        return -(weights * inside).sum(-1).clamp_min(1e-6).log().mean()

    def _decode(self, images: Tensor, command: Tensor, mask: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return chunks float32 [B * K, T, A] and the attention, float32 [B, C, K * queries, P]."""
        vision = self.vision(pixel_values=images.flatten(0, 1)).last_hidden_state[:, 1:]
        patches = self.vision_projection(self.vision.post_layernorm(vision))
        patches = patches.unflatten(0, (-1, self.sizes.cameras))  # [B, C, P, width]
        end = command[:, 0]
        seen, weights = self.read_out(patches, self.read_out.make_queries(end))
        return self.action_head(seen, state, end, self.pooling(command, mask)[0]), weights
