"""Late fusion: vision and language are read apart and meet only in learned weights, before the action head.

Vision reports slots, each where its attention lies (soft arg-max, Levine et al. 2016) and what it sees
there, without knowing the command; language reports one vector. The command then weighs the slots, several
times over, and the action head sees the weighted sums. The usual sketch weighs the two modalities by two
numbers that are the same for every command and adds pooled features: such weights cannot say which block is
meant. Here the weights are made from the command, one for each slot, and the slots keep their positions.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, Sizes
from vla.models.language import Lstm, MeanWords
from vla.models.spatial import grid, multilayer
from vla.models.vision import ResNet, convolutions, edge_of, to_cells


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    # Vision tower: convolutions of stride 4, or the first stages of a ResNet-18.
    backbone: Literal["convolutions", "resnet"] = "convolutions"
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
        """The sketch's size: ResNet-18 up to stride 16, an LSTM of width 256."""
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


class Model(nn.Module):
    """See `vla.models` for the signature; Lc is 1: the command's vector.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride, or the checkpoint does not fit.
        OSError: the checkpoint's folder is missing or holds no model.
    """

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = replace(config, checkpoint=None), sizes
        channels, stride = config.channels, 4
        if config.backbone == "resnet":
            self.tower = ResNet(config.channels, config.depth, config.checkpoint)
            channels, stride = self.tower.channels, self.tower.stride
        else:
            self.tower = convolutions(channels, stride, config.depth)
        self.edge = edge_of(sizes.image_size, stride)
        encoder = Lstm if config.language == "lstm" else MeanWords
        self.language = encoder(sizes.vocabulary, config.word_width)
        self.normalise = nn.LayerNorm(channels)
        self.slots = nn.Linear(channels, config.slots)
        # Sharp from the start: slots that look everywhere all report the same, and cannot be told apart.
        nn.init.normal_(self.slots.weight)
        slots = sizes.cameras * config.slots
        self.weigh = multilayer(config.word_width, 2 * config.word_width, 1, config.heads * slots)
        self.centres: Tensor
        self.register_buffer("centres", grid(self.edge, self.edge), persistent=False)
        seen, outputs = config.heads * (2 + channels), sizes.horizon * sizes.action
        self.decide = multilayer(
            seen + config.word_width + sizes.state, config.hidden, config.layers, outputs
        )

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the language encoder: float32 [N, 1, word_width], bool [N, 1]."""
        command = self.language(input_ids, attention_mask).unsqueeze(1)
        return command, torch.ones_like(command[..., 0], dtype=torch.bool)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk and the slots' attention, weighed as the command weighs them."""
        slots, looks = self._look(images)
        weights = self._weights(command)
        # Each camera's share of the weights is made to sum to one.
        shares = weights.mean(1).unflatten(1, (self.sizes.cameras, 1, -1)) + 1e-6  # [B, C, 1, slots]
        attention = (shares / shares.sum(-1, keepdim=True) @ looks).squeeze(2)
        return {
            "actions": self._decide(slots, weights, command, state),
            "attention": attention.unflatten(-1, (self.edge, self.edge)),
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised."""
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        slots, _ = self._look(batch.images)
        told = batch.commands_per_frame
        slots, state = slots.repeat_interleave(told, 0), batch.state.repeat_interleave(told, 0)
        actions = self._decide(slots, self._weights(command), command, state)
        return {"actions": functional.mse_loss(actions, batch.actions)}

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slots, float32 [B, C * slots, 2 + channels], and where each looks, [B, C, slots, P]."""
        cells = to_cells(self.tower, images)
        looks = torch.softmax(self.slots(self.normalise(cells)), dim=2).transpose(-1, -2)
        return torch.cat([looks @ self.centres, looks @ cells], dim=-1).flatten(1, 2), looks

    def _weights(self, command: Tensor) -> Tensor:
        """Return the command's weights of the slots: float32 [B, heads, C * slots], sum to 1."""
        return torch.softmax(self.weigh(command[:, 0]).unflatten(-1, (self.config.heads, -1)), dim=-1)

    def _decide(self, slots: Tensor, weights: Tensor, command: Tensor, state: Tensor) -> Tensor:
        known = torch.cat([(weights @ slots).flatten(1), command[:, 0], state], dim=-1)
        return self.decide(known).unflatten(-1, (self.sizes.horizon, self.sizes.action))
