"""Little to do for a frame: the first layers of MobileNetV2, an LSTM over the words, a direct action head.

The LSTM runs once a command and is cached by the server, so that a frame costs the layers of MobileNetV2
(Sandler et al. 2018) up to stride 8, a handful of dot products and a small perceptron. These are the fewest
operations of all architectures, though not the shortest time everywhere (docs/comparison.md). Queries that
the command makes attend over the map, because the pooled features of the usual sketch lose where a thing is;
it also runs its LSTM with every frame, and takes the LSTM's state after the padding for the command's.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, Sizes
from vla.models.language import Lstm
from vla.models.spatial import attend, grid, multilayer, read_out
from vla.models.vision import MobileNet, edge_of, to_cells


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    # Scales MobileNetV2's channels; 1 is the published size.
    multiplier: float = 0.35
    # Its inverted residuals, 3 to 5: up to the first or the last of stride 8.
    blocks: int = 3
    # Local folder of a pretrained MobileNetV2 as transformers saves it; None: fresh weights.
    checkpoint: str | None = None
    # Width and layers of the LSTM, and width of the attention.
    word_width: int = 64
    lstm_layers: int = 1
    # Queries that the command makes, and features that each reports.
    queries: int = 4
    features: int = 16
    # Width and hidden layers of the action head.
    hidden: int = 128
    layers: int = 2

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(multiplier=0.2, word_width=8, queries=2, features=4, hidden=16, layers=1)

    @classmethod
    def base(cls) -> Self:
        """MobileNetV2's published width, for which pretrained weights exist, under an LSTM of width 256."""
        return cls(multiplier=1.0, blocks=5, word_width=256, queries=8, features=32, hidden=256)


class Model(nn.Module):
    """See `vla.models` for the signature; Lc is `queries` + 1: the queries, then the command's vector.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride, or the checkpoint does not fit.
        OSError: the checkpoint's folder is missing or holds no model.
    """

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = replace(config, checkpoint=None), sizes
        width = config.word_width
        self.tower = MobileNet(config.multiplier, config.blocks, config.checkpoint)
        self.edge = edge_of(sizes.image_size, self.tower.stride)
        self.language = Lstm(sizes.vocabulary, width, config.lstm_layers)
        self.ask = multilayer(width, 2 * width, 1, config.queries * width)
        self.keys = nn.Linear(self.tower.channels, width)
        self.values = nn.Linear(self.tower.channels, config.features)
        self.centres: Tensor
        self.register_buffer("centres", grid(self.edge, self.edge), persistent=False)
        seen = sizes.cameras * config.queries * (2 + config.features)
        outputs = sizes.horizon * sizes.action
        self.decide = multilayer(seen + width + sizes.state, config.hidden, config.layers, outputs)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the LSTM and make the queries: float32 [N, queries + 1, word_width], bool [N, queries + 1]."""
        command = self.language(input_ids, attention_mask)
        queries = self.ask(command).unflatten(-1, (self.config.queries, -1))
        command = torch.cat([queries, command.unsqueeze(1)], dim=1)
        return command, torch.ones_like(command[..., 0], dtype=torch.bool)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk and the queries' mean attention."""
        seen, weights = self._look(images, command[:, :-1], told=1)
        return {
            "actions": self._decide(seen, command, state),
            "attention": weights.mean(2).unflatten(-1, (self.edge, self.edge)),
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised."""
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
            queries: float32 [B, K * queries, word_width]
            told: K

        Returns:
            what each command sees, float32 [B * K, V], and the attention, float32 [B, C, K * queries, P]
        """
        cells = to_cells(self.tower, images)
        weights = attend(queries, self.keys(cells))
        return read_out(weights, self.values(cells), self.centres, told).flatten(0, 1), weights

    def _decide(self, seen: Tensor, command: Tensor, state: Tensor) -> Tensor:
        known = torch.cat([seen, command[:, -1], state], dim=-1)
        return self.decide(known).unflatten(-1, (self.sizes.horizon, self.sizes.action))
