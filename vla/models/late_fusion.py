"""Late fusion: vision and language are read apart and meet only in learned weights, before the action head.

Vision reports slots without knowing the command: each is where its attention lies, by the spatial soft
arg-max of Levine et al. 2016, "End-to-End Training of Deep Visuomotor Policies", and what it sees there.
Language reports one vector. The command weights the slots, once for each of several heads, as in the
attention of Bahdanau et al. 2015, "Neural Machine Translation by Jointly Learning to Align and Translate";
the action head gets the weighted sums. The weights are made from the command, one for each slot, so that they
can say which block is meant; and the slots keep their positions. Two fixed weights, one a modality, could do
neither.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.mlp import ActionHead, mlp
from vla.models.parts.published_towers import Backbone, make_tower
from vla.models.parts.read_out import mixed, position_grid, soft_argmax
from vla.models.parts.text import BagOfWords, Lstm
from vla.models.parts.towers import edge_of, encode_images


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    published: ClassVar[dict[str, str]] = {"resnet": "checkpoint"}

    # Vision tower: convolutions of stride 4, or the first stages of a ResNet-18.
    backbone: Backbone = "convolutions"
    # Channels of the convolutions, or of the ResNet's first stage.
    channels: int = 32
    # Convolutions after the stem, or stages of the ResNet.
    depth: int = 2
    # Local folder of a pretrained ResNet as transformers saves it; None: fresh weights.
    checkpoint: str | None = None
    # Language encoder: an LSTM, or the mean of the word vectors.
    language: Literal["lstm", "mean"] = "mean"
    word_width: int = 64
    # Slots that vision reports of a picture.
    slots: int = 16
    # Weightings of the slots that the command makes.
    heads: int = 4
    # Width and hidden layers of the action head.
    hidden: int = 256
    layers: int = 2

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(channels=8, depth=1, language="lstm", word_width=8, slots=4, heads=2, hidden=16, layers=1)

    @classmethod
    def base(cls) -> Self:
        """ResNet-18 up to stride 16, an LSTM of width 256."""
        return cls(
            backbone="resnet",
            channels=64,
            depth=3,
            language="lstm",
            word_width=256,
            slots=32,
            heads=8,
            hidden=512,
        )


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature; Lc is 1: the command's vector.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride, or the checkpoint does not fit.
        OSError: the checkpoint's folder is missing or holds no model.
    """

    masked = True

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = replace(config, checkpoint=None), sizes
        self.tower = make_tower(config.backbone, config.channels, config.depth, 4, config.checkpoint)
        channels = self.tower.channels
        self.edge = edge_of(sizes.image_size, self.tower.stride)
        text_encoder = Lstm if config.language == "lstm" else BagOfWords
        self.text_encoder = text_encoder(sizes.vocabulary, config.word_width)
        self.norm = nn.LayerNorm(channels)
        self.slot_head = nn.Linear(channels, config.slots)
        # Sharp from the start: slots that look everywhere all report the same, and cannot be told apart.
        nn.init.normal_(self.slot_head.weight)
        slots = sizes.cameras * config.slots
        self.slot_weight_head = mlp(config.word_width, 2 * config.word_width, 1, config.heads * slots)
        self.positions: Tensor
        self.register_buffer("positions", position_grid(self.edge, self.edge), persistent=False)
        inputs = config.heads * (2 + channels) + config.word_width + sizes.state
        self.action_head = ActionHead(inputs, config.hidden, config.layers, sizes)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the text encoder: float32 [N, 1, word_width], bool [N, 1]."""
        command = self.text_encoder(input_ids, attention_mask).unsqueeze(1)
        return command, torch.ones_like(command[..., 0], dtype=torch.bool)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk and the slots' attention, weighted as the command weights them."""
        slots, attention = self._slots(images)
        actions, weights = self._decode(slots, command[:, 0], state)
        return {
            "actions": actions,
            "attention": mixed(weights, attention).unflatten(-1, (self.edge, self.edge)),
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised."""
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        slots = batch.per_command(self._slots(batch.images)[0])
        actions, _ = self._decode(slots, command[:, 0], batch.per_command(batch.state))
        return {"actions": batch.squared_error(actions)}

    def _slots(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slots, float32 [B, C * slots, 2 + channels], and their attention, [B, C, slots, P]."""
        features = encode_images(self.tower, images)
        attention = torch.softmax(self.slot_head(self.norm(features)), dim=2).transpose(-1, -2)
        return soft_argmax(attention, features, self.positions).flatten(1, 2), attention

    def _decode(self, slots: Tensor, command: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return chunks float32 [N, T, A] and the slots' weights, float32 [N, heads, C * slots], sum to 1."""
        scores = self.slot_weight_head(command).unflatten(-1, (self.config.heads, -1))
        weights = torch.softmax(scores, dim=-1)
        return self.action_head((weights @ slots).flatten(1), command, state), weights
