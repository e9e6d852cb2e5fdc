"""Vision towers from pictures to feature maps that are still maps: no pooling over the picture."""

import torch
from torch import Tensor, nn


class Tower(nn.Module):
    """Maps float32 [N, 3, H, W] to float32 [N, channels, H / stride, W / stride]."""

    channels: int
    # Edge of a position of the map [pixels].
    stride: int


class Convolutions(Tower):
    """A small tower of one map, `stride` 4 or 8, with `depth` convolutions after the strided ones.

    Raises:
        ValueError: another stride.
    """

    def __init__(self, channels: int, stride: int, depth: int) -> None:
        super().__init__()
        if stride not in (4, 8):
            raise ValueError(f"stride must be 4 or 8, got {stride}")
        self.channels, self.stride = channels, stride
        stem = channels // (stride // 4)
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 8, 4, 2), nn.ReLU()]
        if stride == 8:
            layers += [nn.Conv2d(stem, channels, 4, 2, 1), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        """See `Tower`."""
        return self.layers(pictures)


def encode_images(tower: Tower, images: Tensor) -> Tensor:
    """Run a tower on float32 [B, C, 3, H, W]; its map, row by row: float32 [B, C, P, channels]."""
    pictures = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return tower(pictures).flatten(2).transpose(1, 2).unflatten(0, (-1, images.shape[1]))


def edge_of(image_size: int, stride: int) -> int:
    """Return the positions along the edge of a map.

    Raises:
        ValueError: the picture's size is no multiple of the stride.
    """
    if image_size % stride:
        raise ValueError(f"image_size must be a multiple of {stride}, got {image_size}")
    return image_size // stride
