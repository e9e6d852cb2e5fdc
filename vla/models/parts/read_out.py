"""Positions and features read out of a feature map by attention.

The mean position under an attention distribution is the spatial soft arg-max of Levine et al. 2016,
"End-to-End Training of Deep Visuomotor Policies". It keeps where a thing is, which features averaged over the
picture lose.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vla.models import Sizes
from vla.models.parts.mlp import mlp
from vla.models.parts.text import BagOfWords
from vla.models.parts.towers import Convolutions, edge_of, encode_images

# Edge of a position of `Perception`'s feature map [pixels].
STRIDE = 4


def position_grid(height: int, width: int) -> Tensor:
    """Return the centres of a map's cells, row by row: float32 [height * width, 2], x and y in [-1, 1]."""
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


def with_positions(features: Tensor, positions: Tensor) -> Tensor:
    """Append its position to each feature vector: float32 [B, C, P, D], [P, 2] -> float32 [B, C, P, D + 2].

    After Liu et al. 2018, "An Intriguing Failing of Convolutional Neural Networks and the CoordConv
    Solution".
    """
    return torch.cat([features, positions.expand(*features.shape[:2], -1, -1)], dim=-1)


def attend(queries: Tensor, keys: Tensor) -> Tensor:
    """Return each query's attention over the positions.

    The scores are not divided by the root of D: from that flat a start, grounding takes far longer.

    Args:
        queries: float32 [B, Q, D]
        keys: float32 [B, C, P, D], the P positions of each of C cameras

    Returns:
        float32 [B, C, Q, P], sums to 1 over P
    """
    return torch.softmax(queries.unsqueeze(1) @ keys.transpose(-1, -2), dim=-1)


def soft_argmax(attention: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Return the mean position and the mean value under an attention: [..., Q, P] -> [..., Q, 2 + V]."""
    return torch.cat([attention @ positions, attention @ values], dim=-1)


def mixed(weights: Tensor, attention: Tensor) -> Tensor:
    """Return the mean of attention distributions under weights, for each camera by itself.

    Args:
        weights: float32 [B, heads, C * slots]
        attention: float32 [B, C, slots, P]

    Returns:
        float32 [B, C, P], sums to 1 over P
    """
    shares = weights.mean(1).unflatten(1, (attention.shape[1], 1, -1)) + 1e-6  # [B, C, 1, slots]
    return (shares / shares.sum(-1, keepdim=True) @ attention).squeeze(2)


class QueryReadOut(nn.Module):
    """Queries made from the command attend over a feature map: where each looks, and what it sees there."""

    def __init__(
        self, cameras: int, edge: int, channels: int, width: int, *, queries: int, features: int
    ) -> None:
        """Make the projections.

        Args:
            cameras: C
            edge: positions along the map's edge; P is its square
            channels: of the feature map
            width: of the command's vector and of a query
            queries: Q, that a command makes
            features: that a query reads
        """
        super().__init__()
        self.edge, self.queries = edge, queries
        self.query_projection = mlp(width, 2 * width, 1, queries * width)
        self.key_projection = nn.Linear(channels, width)
        self.value_projection = nn.Linear(channels, features)
        self.positions: Tensor
        self.register_buffer("positions", position_grid(edge, edge), persistent=False)
        # Numbers that are read out for a command.
        self.size = cameras * queries * (2 + features)

    def make_queries(self, command: Tensor) -> Tensor:
        """Turn the command's vector into queries: float32 [N, width] -> float32 [N, Q, width]."""
        return self.query_projection(command).unflatten(-1, (self.queries, -1))

    def forward(self, features: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Read frames out under their commands.

        Args:
            features: float32 [B, C, P, channels]
            queries: float32 [B * K, Q, width], the queries of K commands for each frame

        Returns:
            what each command reads, float32 [B * K, size], and the attention, float32 [B, C, K * Q, P]
        """
        queries = queries.reshape(features.shape[0], -1, queries.shape[-1])
        weights = attend(queries, self.key_projection(features))
        seen = soft_argmax(weights, self.value_projection(features), self.positions)
        return seen.unflatten(2, (-1, self.queries)).transpose(1, 2).flatten(2).flatten(0, 1), weights

    def attention_map(self, weights: Tensor) -> Tensor:
        """Return the queries' mean attention, of one command a frame: float32 [B, C, h, w]."""
        return weights.mean(2).unflatten(-1, (self.edge, self.edge))


class ImageTokens(nn.Module):
    """Convolutions to tokens that know their positions.

    Raises:
        ValueError: the pictures' size is no multiple of the stride.
    """

    def __init__(self, image_size: int, channels: int, stride: int, depth: int, width: int) -> None:
        super().__init__()
        self.edge = edge_of(image_size, stride)
        self.tower = Convolutions(channels, stride, depth)
        self.projection = nn.Linear(channels + 2, width)
        self.positions: Tensor
        self.register_buffer("positions", position_grid(self.edge, self.edge), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Turn float32 [B, C, 3, H, W] into float32 [B, C * P, width]."""
        return self.projection(with_positions(encode_images(self.tower, images), self.positions)).flatten(
            1, 2
        )

    def as_map(self, attention: Tensor) -> Tensor:
        """Lay an attention out as the picture lies: float32 [B, C, P] -> [B, C, h, w]."""
        return attention.unflatten(-1, (self.edge, self.edge))


class View(NamedTuple):
    """What N commands see, N being B frames times K commands."""

    queries: Tensor  # float32 [N, C * Q, 2 + channels], where each query looks, x and y, and what it sees
    keypoints: Tensor  # float32 [N, C * keypoints * 2], the same for all commands of a frame
    attention: Tensor  # float32 [B, C, K * Q, P]
    features: Tensor  # float32 [B, C, P, channels], the map that was looked at

    def flat(self) -> Tensor:
        """Return all that is seen as one vector: float32 [N, V]."""
        return torch.cat([self.queries.flatten(1), self.keypoints], dim=-1)


class Perception(nn.Module):
    """What a command makes of the pictures: the text encoder and the vision of several action heads.

    Queries made from the command attend over a convolutional map: each reports where it looks and what it
    sees there. Keypoints that do not depend on the command report where the rest is.

    Raises:
        ValueError: the pictures' size is no multiple of `STRIDE`.
    """

    def __init__(
        self, sizes: Sizes, *, width: int, channels: int, depth: int, queries: int, keypoints: int
    ) -> None:
        """Make the parts.

        Args:
            sizes: the policy's sizes
            width: of a word embedding and of a query
            channels: of the feature map
            depth: 3 x 3 convolutions after the strided one
            queries: Q, that a command makes
            keypoints: of each camera, that do not depend on the command
        """
        super().__init__()
        self.width, self.edge = width, edge_of(sizes.image_size, STRIDE)
        self.text_encoder = BagOfWords(sizes.vocabulary, width)
        self.command_head = mlp(width, 2 * width, 1, (queries + 1) * width)
        self.tower = Convolutions(channels, STRIDE, depth)
        self.key_projection = nn.Linear(channels, width)
        self.keypoint_head = nn.Linear(channels, keypoints)
        self.positions: Tensor
        self.register_buffer("positions", position_grid(self.edge, self.edge), persistent=False)
        # Numbers that a query reads, and that `View.flat` has.
        self.query_size = 2 + channels
        self.flat_size = sizes.cameras * (queries * self.query_size + keypoints * 2)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn words into queries and a summary: float32 [N, Q + 1, width], bool [N, Q + 1], all True."""
        command = self.command_head(self.text_encoder(input_ids, attention_mask))
        command = command.unflatten(-1, (-1, self.width))
        return command, torch.ones_like(command[..., 0], dtype=torch.bool)

    def forward(self, images: Tensor, command: Tensor) -> View:
        """Look at frames under their commands.

        Args:
            images: float32 [B, C, 3, H, W]
            command: float32 [B * K, Q + 1, width], from `encode_command`
        """
        return self.view(self.features(images), command)

    def features(self, images: Tensor) -> Tensor:
        """Return the feature maps of float32 [B, C, 3, H, W]: float32 [B, C, P, channels]."""
        return encode_images(self.tower, images)

    def view(self, features: Tensor, command: Tensor) -> View:
        """Look at feature maps under the commands of their frames; see `forward`."""
        command = command.unflatten(0, (features.shape[0], -1))  # [B, K, Q + 1, width]
        commands_per_frame = command.shape[1]
        weights = attend(command[:, :, :-1].flatten(1, 2), self.key_projection(features))  # [B, C, K * Q, P]
        seen = soft_argmax(weights, features, self.positions).unflatten(2, (commands_per_frame, -1))
        queries = seen.transpose(1, 2).flatten(0, 1).flatten(1, 2)
        points = torch.softmax(self.keypoint_head(features), dim=2).transpose(-1, -2) @ self.positions
        keypoints = points.flatten(1).unsqueeze(1).expand(-1, commands_per_frame, -1).flatten(0, 1)
        return View(queries, keypoints, weights, features)

    def attention_map(self, weights: Tensor) -> Tensor:
        """Return the queries' mean attention, of one command a frame: float32 [B, C, h, w]."""
        return weights.mean(2).unflatten(-1, (self.edge, self.edge))
