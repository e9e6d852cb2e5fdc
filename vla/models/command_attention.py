"""The default policy: attention queries made from the command read a convolutional feature map.

The command's word vectors are averaged and become a few queries; each query attends over the map and reports
where it looks (soft arg-max) and what it sees there; these, free keypoints, the state and a summary of the
command decide the actions. Spatial soft arg-max after Levine et al. 2016; bag of word vectors after Joulin et
al. 2017. Grounding colours from a few hundred demonstrations needs several commands for each frame.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, Sizes
from vla.models.spatial import attend, grid, multilayer, read_out

# Edge of a cell of the feature map, as the first convolution strides [pixels].
STRIDE = 4


@dataclass(frozen=True)
class Config:
    """Sizes of the model; the vocabulary's table dominates its parameters."""

    # Width of a word's vector.
    word_width: int = 64
    # Channels of the feature map.
    channels: int = 32
    # 3 x 3 convolutions after the first, strided one.
    convolutions: int = 3
    # Queries that the command makes; their attention is reported.
    queries: int = 4
    # Keypoints that do not depend on the command.
    keypoints: int = 8
    # Width and hidden layers of the action decoder.
    hidden: int = 256
    layers: int = 2

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(word_width=8, channels=8, convolutions=1, queries=2, keypoints=2, hidden=16, layers=1)

    @classmethod
    def base(cls) -> Self:
        """For pictures and tasks richer than the tabletop; about four times the default's computation."""
        return cls(word_width=128, channels=64, convolutions=4, queries=8, keypoints=16, hidden=512)


class Model(nn.Module):
    """See `vla.models` for the signature; Lc is `queries` + 1: the queries, then the summary.

    Raises:
        ValueError: the pictures' size is no multiple of `STRIDE`.
    """

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        if sizes.image_size % STRIDE:
            raise ValueError(f"image_size must be a multiple of {STRIDE}, got {sizes.image_size}")
        self.config, self.sizes = config, sizes
        width, channels, edge = config.word_width, config.channels, sizes.image_size // STRIDE
        # Zero vectors: a word that training never met adds nothing, and `normalise` undoes its dilution.
        self.words = nn.Embedding(sizes.vocabulary, width)
        nn.init.zeros_(self.words.weight)
        self.normalise = nn.LayerNorm(width, eps=1e-8)
        self.speak = multilayer(width, 2 * width, 1, (config.queries + 1) * width)
        tower: list[nn.Module] = [nn.Conv2d(3, channels, 2 * STRIDE, STRIDE, STRIDE // 2), nn.ReLU()]
        for _ in range(config.convolutions):
            tower += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        self.tower = nn.Sequential(*tower)
        self.keys = nn.Linear(channels, width)
        self.free = nn.Linear(channels, config.keypoints)
        self.centres: Tensor
        self.register_buffer("centres", grid(edge, edge), persistent=False)
        seen = sizes.cameras * (config.queries * (2 + channels) + config.keypoints * 2)
        outputs = sizes.horizon * sizes.action
        self.decide = multilayer(seen + sizes.state + width, config.hidden, config.layers, outputs)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn words into queries: float32 [N, queries + 1, word_width], bool [N, queries + 1]."""
        weights = attention_mask.unsqueeze(-1).float()  # [N, L, 1]
        mean = (self.words(input_ids) * weights).sum(1) / weights.sum(1).clamp_min(1)  # [N, D]
        command = self.speak(self.normalise(mean)).unflatten(-1, (-1, self.config.word_width))
        return command, torch.ones_like(command[..., 0], dtype=torch.bool)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk and the queries' mean attention."""
        seen, weights = self._look(images, command[:, :-1], told=1)
        edge = self.sizes.image_size // STRIDE
        attention = weights.mean(2).unflatten(-1, (edge, edge))
        return {"actions": self._decide(seen, command, state), "attention": attention}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised.

        A median would leave the fingers open, for they close in few frames; a mean does not.
        """
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        told = batch.commands_per_frame
        queries = command[:, :-1].reshape(len(batch.images), -1, command.shape[-1])
        seen, _ = self._look(batch.images, queries, told)
        actions = self._decide(seen, command, batch.state.repeat_interleave(told, 0))
        return {"actions": functional.mse_loss(actions, batch.actions)}

    def _look(self, images: Tensor, queries: Tensor, told: int) -> tuple[Tensor, Tensor]:
        """Look at each frame with the queries of its K = `told` commands.

        Args:
            images: float32 [B, C, 3, H, W]
            queries: float32 [B, K * queries, D]
            told: K

        Returns:
            what each command sees, float32 [B * K, V], and the attention, float32 [B, C, K * queries, P]
        """
        pictures = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        cells = self.tower(pictures).flatten(2).transpose(1, 2)  # [B * C, P, channels]
        cells = cells.unflatten(0, (-1, self.sizes.cameras))  # [B, C, P, channels]
        weights = attend(queries, self.keys(cells))
        free = torch.softmax(self.free(cells), dim=2).transpose(-1, -2) @ self.centres  # [B, C, keypoints, 2]
        free = free.flatten(1).unsqueeze(1).expand(-1, told, -1)
        seen = torch.cat([read_out(weights, cells, self.centres, told), free], dim=-1)
        return seen.flatten(0, 1), weights

    def _decide(self, seen: Tensor, command: Tensor, state: Tensor) -> Tensor:
        known = torch.cat([seen, state, command[:, -1]], dim=-1)
        return self.decide(known).unflatten(-1, (self.sizes.horizon, self.sizes.action))
