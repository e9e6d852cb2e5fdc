"""What a command makes of the pictures: the eyes and ears that several action heads share.

Queries made from the command attend over a convolutional map, as in `command_attention`: each tells where it
looks and what it sees there. Keypoints that ignore the command tell where the rest is (Levine et al. 2016).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vla.models import Sizes
from vla.models.language import MeanWords
from vla.models.spatial import attend, grid, multilayer
from vla.models.vision import convolutions, edge_of, to_cells

# Edge of a cell of the feature map [pixels].
STRIDE = 4


class View(NamedTuple):
    """What N commands see, N being B frames times K commands."""

    queries: Tensor  # float32 [N, C * Q, 2 + channels], where each query looks, x and y, and what it sees
    keypoints: Tensor  # float32 [N, C * keypoints * 2], the same for all commands of a frame
    attention: Tensor  # float32 [B, C, K * Q, P]

    def flat(self) -> Tensor:
        """Return all that is seen as one vector: float32 [N, V]."""
        return torch.cat([self.queries.flatten(1), self.keypoints], dim=-1)


class Perception(nn.Module):
    """Words to queries, pictures and queries to a `View`.

    Raises:
        ValueError: the pictures' size is no multiple of `STRIDE`.
    """

    def __init__(
        self, sizes: Sizes, *, width: int, channels: int, depth: int, queries: int, keypoints: int
    ) -> None:
        """Make the parts.

        Args:
            sizes: the policy's sizes
            width: of a word's vector and of a query
            channels: of the feature map
            depth: 3 x 3 convolutions after the strided one
            queries: that a command makes
            keypoints: of each camera, that do not depend on the command
        """
        super().__init__()
        self.width, self.edge = width, edge_of(sizes.image_size, STRIDE)
        self.words = MeanWords(sizes.vocabulary, width)
        self.speak = multilayer(width, 2 * width, 1, (queries + 1) * width)
        self.tower = convolutions(channels, STRIDE, depth)
        self.keys = nn.Linear(channels, width)
        self.free = nn.Linear(channels, keypoints)
        self.centres: Tensor
        self.register_buffer("centres", grid(self.edge, self.edge), persistent=False)
        # Lengths of a query's report and of `View.flat`.
        self.seen = 2 + channels
        self.flat = sizes.cameras * (queries * self.seen + keypoints * 2)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn words into queries and a summary: float32 [N, Q + 1, width], bool [N, Q + 1], all True."""
        command = self.speak(self.words(input_ids, attention_mask)).unflatten(-1, (-1, self.width))
        return command, torch.ones_like(command[..., 0], dtype=torch.bool)

    def forward(self, images: Tensor, command: Tensor) -> View:
        """Look at frames under their commands.

        Args:
            images: float32 [B, C, 3, H, W]
            command: float32 [B, K, Q + 1, width], from `encode_command`
        """
        told = command.shape[1]
        cells = to_cells(self.tower, images)  # [B, C, P, channels]
        weights = attend(command[:, :, :-1].flatten(1, 2), self.keys(cells))  # [B, C, K * Q, P]
        seen = torch.cat([weights @ self.centres, weights @ cells], dim=-1)  # [B, C, K * Q, 2 + channels]
        queries = seen.unflatten(2, (told, -1)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
        free = torch.softmax(self.free(cells), dim=2).transpose(-1, -2) @ self.centres  # [B, C, keypoints, 2]
        keypoints = free.flatten(1).unsqueeze(1).expand(-1, told, -1).flatten(0, 1)
        return View(queries, keypoints, weights)

    def as_map(self, attention: Tensor) -> Tensor:
        """Return the queries' mean attention, of one command a frame: float32 [B, C, h, w]."""
        return attention.mean(2).unflatten(-1, (self.edge, self.edge))
