"""ResNet-18 and ResNet-34 without their classifier, with the parameters' names of torchvision."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

# Makes a normalisation layer for so many channels.
Norm = Callable[[int], nn.Module]
# Blocks in each of the four layers.
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
WIDTHS = (64, 128, 256, 512)
# Pixels of a picture along one axis for one place of the last feature map.
STRIDE = 32


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by statistics that no longer change."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(width))
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Normalise each channel: float32 [N, D, H, W]."""
        return functional.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias)


class BasicBlock(nn.Module):
    """Two convolutions and a residual; after He et al. 2016, "Deep Residual Learning"."""

    def __init__(self, width_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = norm(width)
        self.downsample = None
        if stride > 1 or width_in != width:
            self.downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), norm(width))

    def forward(self, features: Tensor) -> Tensor:
        """Return features float32 [N, width, H / stride, W / stride]."""
        residual = features if self.downsample is None else self.downsample(features)
        hidden = self.bn1(self.conv1(features)).relu()
        return (self.bn2(self.conv2(hidden)) + residual).relu()


class ResNet(nn.Module):
    """The feature map of a picture's last layer."""

    def __init__(self, depth: tuple[int, ...], norm: Norm = FrozenBatchNorm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = norm(64)
        width_in = 64
        for number, (width, blocks) in enumerate(zip(WIDTHS, depth, strict=True), 1):
            layer = [BasicBlock(width_in, width, 1 if number == 1 else 2, norm)]
            layer += [BasicBlock(width, width, 1, norm) for _ in range(blocks - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*layer))
            width_in = width

    def forward(self, pictures: Tensor) -> Tensor:
        """Return float32 [N, 512, H / 32, W / 32], sizes rounded up, of pictures float32 [N, 3, H, W]."""
        features = self.bn1(self.conv1(pictures)).relu()
        features = functional.max_pool2d(features, 3, 2, 1)
        for number in range(1, len(WIDTHS) + 1):
            features = self.get_submodule(f"layer{number}")(features)
        return features


def map_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width of the feature map of a picture."""
    return -(-height // STRIDE), -(-width // STRIDE)
