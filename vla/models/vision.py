"""Convolutional towers from pictures to feature maps that are still maps: no pooling over the picture.

Residual networks and MobileNetV2 are transformers' own, cut before they become too coarse to tell where a
thing is, with fresh weights or those of a local folder.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MobileNetV2Config, MobileNetV2Model, PreTrainedModel, ResNetConfig, ResNetModel

# Share of a batch's statistics in the running ones. transformers' MobileNetV2 has TensorFlow's 0.997, which
# means the opposite in torch: evaluation would use those of the last batch alone.
MOMENTUM = 0.1
RESNET_STRIDES, MOBILENET_STRIDE = (4, 8, 16, 32), 8
# Inverted residuals of MobileNetV2 up to the first and to the last of stride 8.
MOBILENET_BLOCKS = (3, 5)


def convolutions(channels: int, stride: int, depth: int) -> nn.Sequential:
    """Make a small tower of one map of `channels`, `stride` 4 or 8, and `depth` convolutions after the stem.

    Raises:
        ValueError: another stride.
    """
    if stride not in (4, 8):
        raise ValueError(f"stride must be 4 or 8, got {stride}")
    stem = channels // (stride // 4)
    layers: list[nn.Module] = [nn.Conv2d(3, stem, 8, 4, 2), nn.ReLU()]
    if stride == 8:
        layers += [nn.Conv2d(stem, channels, 4, 2, 1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


class ResNet(nn.Module):
    """The first stages of ResNet-18 (He et al. 2016), whose stages have 64, 128, 256 and 512 channels."""

    def __init__(self, channels: int, stages: int, checkpoint: str | None) -> None:
        """Make the tower.

        Args:
            channels: channels of the first stage, doubled in each that follows; 64 as published
            stages: 1 to 4, of stride 4, 8, 16 and 32
            checkpoint: local folder of a ResNet-18 as transformers saves it; None: fresh weights

        Raises:
            ValueError: the checkpoint is that of a ResNet of another size.
            OSError: the checkpoint's folder is missing or holds no model.
        """
        super().__init__()
        sizes = [channels << stage for stage in range(4)]
        config = ResNetConfig(
            embedding_size=channels, hidden_sizes=sizes, depths=[2, 2, 2, 2], layer_type="basic"
        )
        whole = _filled(ResNetModel(config), checkpoint)
        self.embedder, self.stages = whole.embedder, whole.encoder.stages[:stages]
        self.channels, self.stride = whole.config.hidden_sizes[stages - 1], RESNET_STRIDES[stages - 1]

    def forward(self, pictures: Tensor) -> Tensor:
        """Map float32 [N, 3, H, W] to float32 [N, channels, H / stride, W / stride]."""
        cells = self.embedder(pictures)
        for stage in self.stages:
            cells = stage(cells)
        return cells


class MobileNet(nn.Module):
    """MobileNetV2 (Sandler et al. 2018) up to stride 8: at most a good third of its computation."""

    def __init__(self, multiplier: float, blocks: int, checkpoint: str | None) -> None:
        """Make the tower.

        Args:
            multiplier: scales the number of channels; 1 as published
            blocks: inverted residuals after the stem, of which those from 3 to 5 end at stride 8
            checkpoint: local folder of a MobileNetV2 as transformers saves it; None: fresh weights

        Raises:
            ValueError: the tower ends at another stride, or the checkpoint is of another size.
            OSError: the checkpoint's folder is missing or holds no model.
        """
        super().__init__()
        if not MOBILENET_BLOCKS[0] <= blocks <= MOBILENET_BLOCKS[1]:
            raise ValueError(f"blocks must be from 3 to 5, where the stride is 8, got {blocks}")
        whole = _filled(MobileNetV2Model(MobileNetV2Config(depth_multiplier=multiplier)), checkpoint)
        self.stem, self.layers = whole.conv_stem, whole.layer[:blocks]
        self.channels = self.layers[-1].reduce_1x1.convolution.out_channels
        self.stride = MOBILENET_STRIDE
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM

    def forward(self, pictures: Tensor) -> Tensor:
        """Map float32 [N, 3, H, W] to float32 [N, channels, H / 8, W / 8]."""
        cells = self.stem(pictures)
        for layer in self.layers:
            cells = layer(cells)
        return cells


def restart(tower: nn.Module) -> None:
    """Draw a tower's weights as torch does.

    transformers draws those of its convolutional towers with a deviation of 0.02, EfficientNet's norms among
    them: so small that the learning rates of training from scratch tear them apart.
    """
    for module in tower.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()


def to_cells(tower: nn.Module, images: Tensor) -> Tensor:
    """Run a tower on float32 [B, C, 3, H, W] and list its cells: float32 [B, C, P, channels]."""
    pictures = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return tower(pictures).flatten(2).transpose(1, 2).unflatten(0, (-1, images.shape[1]))


def edge_of(image_size: int, stride: int) -> int:
    """Return the cells along a picture's edge.

    Raises:
        ValueError: the picture's size is no multiple of the stride.
    """
    if image_size % stride:
        raise ValueError(f"image_size must be a multiple of {stride}, got {image_size}")
    return image_size // stride


def _filled(model: PreTrainedModel, checkpoint: str | None) -> Any:
    """Return a model with the weights of a local checkpoint, if one is given.

    Raises:
        ValueError: the checkpoint is that of a model of another size.
    """
    if checkpoint is not None:
        found = type(model).from_pretrained(checkpoint, local_files_only=True, dtype=torch.float32)
        try:
            model.load_state_dict(found.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{checkpoint} does not fit a {type(model).__name__}: {error}") from error
    return model
