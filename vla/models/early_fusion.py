"""Early fusion: the command joins the picture's features at the input of one joint network.

The command's vector is added at every position of the feature map, beside the position's coordinates (Liu et
al. 2018, "An Intriguing Failing of Convolutional Neural Networks and the CoordConv Solution"), and
convolutions read both together. Keypoints of the joint map, by the spatial soft arg-max of Levine et al.
2016, "End-to-End Training of Deep Visuomotor Policies", the features under them, the command and the state
decide the actions. The map is not pooled before the fusion: pooling would lose where a thing is before the
command says which thing matters.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.mlp import ActionHead
from vla.models.parts.published_towers import Backbone, make_tower
from vla.models.parts.read_out import position_grid, soft_argmax, with_positions
from vla.models.parts.text import BagOfWords, Lstm
from vla.models.parts.towers import edge_of, encode_images


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    published: ClassVar[dict[str, str]] = {"resnet": "checkpoint"}

    # Vision tower: convolutions of stride 8, or the first stages of a ResNet-18.
    backbone: Backbone = "convolutions"
    # Channels of the convolutions, or of the ResNet's first stage.
    channels: int = 48
    # Convolutions after the stem, or stages of the ResNet.
    depth: int = 1
    # Local folder of a pretrained ResNet as transformers saves it; None: fresh weights.
    checkpoint: str | None = None
    # Language encoder: an LSTM, or the mean of the word vectors.
    language: Literal["lstm", "mean"] = "mean"
    word_width: int = 64
    # Channels of the joint network, and its 3 x 3 convolutions.
    width: int = 48
    joint: int = 1
    # Keypoints of the joint map, and features read at each.
    keypoints: int = 8
    features: int = 16
    # Width and hidden layers of the action head.
    hidden: int = 256
    layers: int = 2

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(
            backbone="resnet",
            channels=8,
            depth=2,
            word_width=8,
            width=8,
            keypoints=2,
            features=4,
            hidden=16,
            layers=1,
        )

    @classmethod
    def base(cls) -> Self:
        """ResNet-18 up to stride 16, an LSTM of width 256."""
        return cls(
            backbone="resnet",
            channels=64,
            depth=3,
            language="lstm",
            word_width=256,
            width=256,
            joint=3,
            keypoints=16,
            features=32,
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
        width = config.width
        self.tower = make_tower(config.backbone, config.channels, config.depth, 8, config.checkpoint)
        self.edge = edge_of(sizes.image_size, self.tower.stride)
        text_encoder = Lstm if config.language == "lstm" else BagOfWords
        self.text_encoder = text_encoder(sizes.vocabulary, config.word_width)
        # Together one layer over the concatenation of both; the picture's half is computed once a frame.
        self.image_projection = nn.Linear(self.tower.channels + 2, width)
        self.command_projection = nn.Linear(config.word_width, width, bias=False)
        layers: list[nn.Module] = []
        for _ in range(config.joint):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.joint_network = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.keypoint_head = nn.Linear(width, config.keypoints)
        # Sharp from the start: keypoints that lie in the middle whatever is said have nothing to learn from.
        nn.init.normal_(self.keypoint_head.weight)
        self.value_projection = nn.Linear(width, config.features)
        self.positions: Tensor
        self.register_buffer("positions", position_grid(self.edge, self.edge), persistent=False)
        inputs = sizes.cameras * config.keypoints * (2 + config.features) + config.word_width + sizes.state
        self.action_head = ActionHead(inputs, config.hidden, config.layers, sizes)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the text encoder: float32 [N, 1, word_width], bool [N, 1]."""
        command = self.text_encoder(input_ids, attention_mask).unsqueeze(1)
        return command, torch.ones_like(command[..., 0], dtype=torch.bool)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk and the keypoints' mean attention."""
        actions, weights = self._decode(self._project(images), command[:, 0], state)
        return {"actions": actions, "attention": weights.mean(2).unflatten(-1, (self.edge, self.edge))}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised."""
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        features = batch.per_command(self._project(batch.images))
        actions, _ = self._decode(features, command[:, 0], batch.per_command(batch.state))
        return {"actions": batch.squared_error(actions)}

    def _project(self, images: Tensor) -> Tensor:
        """Return what is common to all commands: float32 [B, C, P, width]."""
        return self.image_projection(with_positions(encode_images(self.tower, images), self.positions))

    def _decode(self, features: Tensor, command: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run the joint network and the action head.

        Args:
            features: float32 [N, C, P, width], from `_project`
            command: float32 [N, word_width]
            state: float32 [N, S]

        Returns:
            chunks float32 [N, T, A] and the keypoints' attention, float32 [N, C, keypoints, P]
        """
        fused = functional.relu(features + self.command_projection(command)[:, None, None])
        maps = fused.flatten(0, 1).transpose(1, 2).unflatten(-1, (self.edge, self.edge))
        joint = self.joint_network(maps).flatten(2).transpose(1, 2).unflatten(0, (-1, self.sizes.cameras))
        joint = self.norm(joint)
        weights = torch.softmax(self.keypoint_head(joint), dim=2).transpose(-1, -2)
        seen = soft_argmax(weights, self.value_projection(joint), self.positions).flatten(1)
        return self.action_head(seen, command, state), weights
