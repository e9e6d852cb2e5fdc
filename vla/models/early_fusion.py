"""Early fusion: the command joins the picture's features at the input of one joint network.

The command's vector is laid over every cell of the feature map, beside the cell's features and its position
(CoordConv, Liu et al. 2018), and convolutions read them together; keypoints of the joint map (soft arg-max,
Levine et al. 2016), what lies under them, the command and the state decide the actions. The usual sketch
pools the picture to one vector, often by taking `backbone.fc` off a network whose last layer was dropped
already, and concatenates that: where a thing was is gone before the command is read.
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

    # Vision tower: convolutions of stride 8, or the first stages of a ResNet-18.
    backbone: Literal["convolutions", "resnet"] = "convolutions"
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
        """The sketch's size: ResNet-18 up to stride 16, an LSTM of width 256."""
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


class Model(nn.Module):
    """See `vla.models` for the signature; Lc is 1: the command's vector.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride, or the checkpoint does not fit.
        OSError: the checkpoint's folder is missing or holds no model.
    """

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = replace(config, checkpoint=None), sizes
        channels, stride, width = config.channels, 8, config.width
        if config.backbone == "resnet":
            self.tower = ResNet(config.channels, config.depth, config.checkpoint)
            channels, stride = self.tower.channels, self.tower.stride
        else:
            self.tower = convolutions(channels, stride, config.depth)
        self.edge = edge_of(sizes.image_size, stride)
        encoder = Lstm if config.language == "lstm" else MeanWords
        self.language = encoder(sizes.vocabulary, config.word_width)
        # Together one layer over the concatenation of both; its picture's half is computed once a frame.
        self.join_cells = nn.Linear(channels + 2, width)
        self.join_command = nn.Linear(config.word_width, width, bias=False)
        joint: list[nn.Module] = []
        for _ in range(config.joint):
            joint += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.joint = nn.Sequential(*joint)
        self.normalise = nn.LayerNorm(width)
        self.keypoints = nn.Linear(width, config.keypoints)
        # Sharp from the start: keypoints that lie in the middle whatever is said have nothing to learn from.
        nn.init.normal_(self.keypoints.weight)
        self.values = nn.Linear(width, config.features)
        self.centres: Tensor
        self.register_buffer("centres", grid(self.edge, self.edge), persistent=False)
        seen = sizes.cameras * config.keypoints * (2 + config.features)
        outputs = sizes.horizon * sizes.action
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
        """Return the normalised chunk and the keypoints' mean attention."""
        seen, looks = self._look(images, command[:, 0], told=1)
        return {
            "actions": self._decide(seen, command, state),
            "attention": looks.mean(2).unflatten(-1, (self.edge, self.edge)),
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised."""
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        told = batch.commands_per_frame
        seen, _ = self._look(batch.images, command[:, 0], told)
        actions = self._decide(seen, command, batch.state.repeat_interleave(told, 0))
        return {"actions": functional.mse_loss(actions, batch.actions)}

    def _look(self, images: Tensor, command: Tensor, told: int) -> tuple[Tensor, Tensor]:
        """Run the joint network on each frame under its K = `told` commands.

        Args:
            images: float32 [B, C, 3, H, W]
            command: float32 [B * K, word_width]
            told: K

        Returns:
            what is seen, float32 [B * K, V], and the keypoints' attention, float32 [B * K, C, keypoints, P]
        """
        cells = to_cells(self.tower, images)
        places = self.centres.expand(*cells.shape[:2], -1, -1)
        cells = self.join_cells(torch.cat([cells, places], dim=-1)).repeat_interleave(told, 0)
        cells = functional.relu(cells + self.join_command(command)[:, None, None])  # [B * K, C, P, width]
        planes = cells.flatten(0, 1).transpose(1, 2).unflatten(-1, (self.edge, self.edge))
        joint = self.joint(planes).flatten(2).transpose(1, 2).unflatten(0, (-1, self.sizes.cameras))
        joint = self.normalise(joint)
        looks = torch.softmax(self.keypoints(joint), dim=2).transpose(-1, -2)
        return torch.cat([looks @ self.centres, looks @ self.values(joint)], dim=-1).flatten(1), looks

    def _decide(self, seen: Tensor, command: Tensor, state: Tensor) -> Tensor:
        known = torch.cat([seen, command[:, 0], state], dim=-1)
        return self.decide(known).unflatten(-1, (self.sizes.horizon, self.sizes.action))
