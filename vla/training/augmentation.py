"""What befalls pictures between scene and policy, and pictures that show no scene; on whole batches.

Pictures are float32 [N, 3, H, W] in [0, 1] here.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

# Shares of the pictures that are blurred, noisy and partly covered.
BLURRED, NOISY, COVERED = 0.35, 0.5, 0.35
# Largest standard deviations of the blur [pixels] and of the noise.
BLUR, NOISE = 2.3, 0.08


def disturb(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Change brightness, contrast, tint and gamma, then cover, blur and add noise."""
    count = len(pictures)
    gain = torch.exp(_uniform(random, (count, 1, 1, 1), math.log(0.55), math.log(1.5)))
    gain = gain * _uniform(random, (count, 3, 1, 1), 0.88, 1.12)
    pictures = (pictures * gain).clamp(0, 1) ** _uniform(random, (count, 1, 1, 1), 0.75, 1.35)
    contrast = _uniform(random, (count, 1, 1, 1), 0.75, 1.15)
    mean = pictures.mean((1, 2, 3), keepdim=True)
    pictures = _covered((pictures - mean) * contrast + mean, random)
    blurred = _share(random, count, BLURRED).flatten()
    if blurred.any():
        pictures[blurred] = _blurred(pictures[blurred], random)
    noise = torch.randn(pictures.shape, generator=random) * _uniform(random, (count, 1, 1, 1), 0, NOISE)
    return torch.where(_share(random, count, NOISY), pictures + noise, pictures).clamp(0, 1)


def foreign(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Return as many pictures that show no scene: blank, noise, patterns, and scenes beyond recognition."""
    makers = (_blank, _blank, _static, _clouds, _clouds, _collage, _collage, _shuffled, _upside_down)
    kinds = torch.randint(len(makers), (len(pictures),), generator=random).tolist()
    made = [makers[kind](picture, random) for kind, picture in zip(kinds, pictures, strict=True)]
    return torch.stack(made).clamp(0, 1) if made else pictures


def _blank(picture: Tensor, random: torch.Generator) -> Tensor:
    """One colour: grey, black, white or any; now and then with a little noise."""
    grey = torch.rand(1, 1, 1, generator=random).expand(3, 1, 1)
    colours = (grey, torch.zeros(3, 1, 1), torch.ones(3, 1, 1), torch.rand(3, 1, 1, generator=random))
    colour = colours[int(torch.randint(4, (1,), generator=random))]
    noise = 0.05 * torch.rand(1, generator=random) * torch.randn(picture.shape, generator=random)
    return colour.expand_as(picture) + (noise if torch.rand(1, generator=random) < 0.4 else 0)


def _static(picture: Tensor, random: torch.Generator) -> Tensor:
    return torch.rand(picture.shape, generator=random)


def _clouds(picture: Tensor, random: torch.Generator) -> Tensor:
    """Coloured noise of several scales, as photographs have it."""
    edge, total = picture.shape[-1], torch.zeros_like(picture)
    for cells in (2, 3, 6, 12, 24, 48):
        grid = torch.rand(1, 3, cells, cells, generator=random)
        if torch.rand(1, generator=random) < 0.5:
            grid = grid.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        mode = "nearest" if torch.rand(1, generator=random) < 0.3 else "bilinear"
        layer = functional.interpolate(grid, (edge, edge), mode=mode)[0]
        total = total + (layer - 0.5) * torch.rand(1, generator=random) * 1.5
    return total + torch.rand(3, 1, 1, generator=random)


def _collage(picture: Tensor, random: torch.Generator) -> Tensor:
    """Rectangles and discs of any colour, on a ground that fades."""
    edge = picture.shape[-1]
    y, x = torch.meshgrid(torch.arange(edge), torch.arange(edge), indexing="ij")
    slope = torch.rand(3, 2, generator=random) - 0.5
    made = torch.rand(3, 1, 1, generator=random) + (
        slope[:, 0, None, None] * x / edge + slope[:, 1, None, None] * y / edge
    )
    for _ in range(int(torch.randint(2, 14, (1,), generator=random))):
        left, top, width, height = (torch.rand(4, generator=random) * edge).tolist()
        width, height = 4 + width / 2, 4 + height / 2
        inside = (x >= left) & (x < left + width) & (y >= top) & (y < top + height)
        if torch.rand(1, generator=random) < 0.4:
            inside = ((x - left) / width) ** 2 + ((y - top) / height) ** 2 < 1
        made = torch.where(inside, torch.rand(3, 1, 1, generator=random), made)
    return made


def _shuffled(picture: Tensor, random: torch.Generator) -> Tensor:
    """The scene's parts in another order."""
    size = picture.shape[-1] // 4
    parts = picture.unfold(1, size, size).unfold(2, size, size).flatten(1, 2)  # [3, 16, size, size]
    parts = parts[:, torch.randperm(parts.shape[1], generator=random)].unflatten(1, (-1, 4))
    mixed = parts.permute(0, 1, 3, 2, 4).reshape(3, 4 * size, -1)
    return functional.interpolate(mixed.unsqueeze(0), picture.shape[-2:])[0]


def _upside_down(picture: Tensor, random: torch.Generator) -> Tensor:
    turned = picture.flip(1)
    return 1 - turned if torch.rand(1, generator=random) < 0.3 else turned


def _covered(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Cover some with one rectangle of one colour, up to a third of the edge long."""
    count, edge = len(pictures), pictures.shape[-1]
    sizes = _uniform(random, (count, 2, 1, 1), 0.08, 0.33) * edge
    corner = _uniform(random, (count, 2, 1, 1), -0.1, 0.95) * edge
    x, y = torch.arange(edge), torch.arange(edge)[:, None]
    left, top, wide, high = corner[:, :1], corner[:, 1:], sizes[:, :1], sizes[:, 1:]
    inside = (x >= left) & (x < left + wide) & (y >= top) & (y < top + high)
    colours = torch.rand(count, 3, 1, 1, generator=random)
    return torch.where(inside & _share(random, count, COVERED), colours, pictures)


def _blurred(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Blur each by a Gaussian of its own width, first along one axis, then along the other."""
    count, channels = pictures.shape[:2]
    sigma = _uniform(random, (count, 1), 0.3, BLUR)
    reach = math.ceil(2.5 * BLUR)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)  # [N * 3, K]
    maps = functional.pad(
        pictures.reshape(1, count * channels, *pictures.shape[2:]), [reach] * 4, "replicate"
    )
    maps = functional.conv2d(maps, kernel[:, None, None], groups=count * channels)
    maps = functional.conv2d(maps, kernel[:, None, :, None], groups=count * channels)
    return maps.view_as(pictures)


def _uniform(random: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=random)


def _share(random: torch.Generator, count: int, share: float) -> Tensor:
    """Return which of the pictures: bool [N, 1, 1, 1]."""
    return torch.rand(count, 1, 1, 1, generator=random) < share
