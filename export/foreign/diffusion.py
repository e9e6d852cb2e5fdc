"""Diffusion Policy with its 1D U-Net, as LeRobot builds it, for inference.

After Chi et al. 2023, "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion". The names of the
parameters are LeRobot's, but for the picture encoder's backbone, which are torchvision's.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.foreign.resnet import DEPTHS, WIDTHS, FrozenBatchNorm, ResNet, map_size
from export.foreign.weights import Table

# Children of torchvision's ResNet by their place, as LeRobot saves them.
BACKBONE = {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}


@dataclass(frozen=True)
class Config:
    """The sizes that LeRobot's config.json gives, under its names."""

    state: int
    action: int
    cameras: int
    # Height and width of all cameras' pictures [pixels].
    picture: tuple[int, int]
    n_obs_steps: int
    horizon: int
    n_action_steps: int
    vision_backbone: str
    resize_shape: tuple[int, int] | None
    crop_shape: tuple[int, int] | None
    use_group_norm: bool
    spatial_softmax_num_keypoints: int
    use_separate_rgb_encoder_per_camera: bool
    down_dims: tuple[int, ...]
    kernel_size: int
    n_groups: int
    diffusion_step_embed_dim: int
    use_film_scale_modulation: bool
    num_train_timesteps: int
    beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"]
    beta_start: float
    beta_end: float
    prediction_type: Literal["epsilon", "sample"]
    clip_sample: bool
    clip_sample_range: float
    # Denoising steps; fewer than those of training.
    steps: int

    @property
    def encoders(self) -> int:
        """Picture encoders: one a camera, or one for all."""
        return self.cameras if self.use_separate_rgb_encoder_per_camera else 1


def weights(config: Config) -> Table:
    """Return where LeRobot's keys go."""
    taken = [("diffusion.unet.", "unet.")]
    for number in range(config.encoders):
        old = "diffusion.rgb_encoder."
        old += f"{number}." if config.use_separate_rgb_encoder_per_camera else ""
        new = f"rgb_encoder.{number}."
        taken += [(f"{old}backbone.{place}.", f"{new}backbone.{name}.") for place, name in BACKBONE.items()]
        taken += [(f"{old}{part}.", f"{new}{part}.") for part in ("pool", "out")]
    return Table(tuple(taken), (("*.num_batches_tracked", "a counter of training"),))


class SpatialSoftmax(nn.Module):
    """Where learnt features are in a map; after Finn et al. 2016, "Deep Spatial Autoencoders"."""

    def __init__(self, keypoints: int, height: int, width: int) -> None:
        super().__init__()
        self.nets = nn.Conv2d(WIDTHS[-1], keypoints, 1)
        self.register_buffer("pos_grid", torch.zeros(height * width, 2))
        self.pos_grid: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Return places float32 [N, keypoints * 2], x before y, in a map float32 [N, D, h, w]."""
        weights = functional.softmax(self.nets(features).flatten(2), dim=-1)  # [N, K, h w]
        return (weights @ self.pos_grid).flatten(1)


class Encoder(nn.Module):
    """One picture to a vector."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.resized, self.cropped = config.resize_shape, config.crop_shape
        norm = group_norm if config.use_group_norm else FrozenBatchNorm
        self.backbone = ResNet(DEPTHS[config.vision_backbone], norm)
        size = self.cropped or self.resized or config.picture
        keypoints = config.spatial_softmax_num_keypoints
        self.pool = SpatialSoftmax(keypoints, *map_size(*size))
        self.out = nn.Linear(2 * keypoints, 2 * keypoints)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return features float32 [N, 2 keypoints] of pictures float32 [N, 3, H, W]."""
        if self.resized:
            pictures = functional.interpolate(pictures, self.resized, mode="bilinear", antialias=True)
        if self.cropped:
            (height, width), (tall, wide) = pictures.shape[-2:], self.cropped
            top, left = round((int(height) - tall) / 2), round((int(width) - wide) / 2)
            pictures = pictures[..., top : top + tall, left : left + wide]
        return self.out(self.pool(self.backbone(pictures))).relu()


class ConvBlock(nn.Module):
    """Convolution over time, group normalisation, Mish."""

    def __init__(self, width_in: int, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(width_in, width, kernel, padding=kernel // 2)
        self.block = nn.Sequential(convolution, nn.GroupNorm(groups, width), nn.Mish())

    def forward(self, chunk: Tensor) -> Tensor:
        """Return float32 [N, width, T]."""
        return self.block(chunk)


class ResidualBlock(nn.Module):
    """Two convolutions, modulated by the condition in between (FiLM, Perez et al. 2018)."""

    def __init__(self, config: Config, width_in: int, width: int, condition: int) -> None:
        super().__init__()
        self.scaled = config.use_film_scale_modulation
        self.conv1 = ConvBlock(width_in, width, config.kernel_size, config.n_groups)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition, width * (1 + self.scaled)))
        self.conv2 = ConvBlock(width, width, config.kernel_size, config.n_groups)
        self.residual_conv = nn.Conv1d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, chunk: Tensor, condition: Tensor) -> Tensor:
        """Return float32 [N, width, T] of a chunk [N, width_in, T] and a condition [N, D]."""
        hidden, film = self.conv1(chunk), self.cond_encoder(condition).unsqueeze(-1)
        if self.scaled:
            scale, film = film.chunk(2, dim=1)
            hidden = hidden * scale
        return self.conv2(hidden + film) + self.residual_conv(chunk)


class UNet(nn.Module):
    """What is noise in a chunk, or what the chunk is without it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        features = 2 * config.spatial_softmax_num_keypoints * config.cameras
        embedded = config.diffusion_step_embed_dim
        condition = embedded + (config.state + features) * config.n_obs_steps

        def block(width_in: int, width: int) -> ResidualBlock:
            return ResidualBlock(config, width_in, width, condition)

        self.embedded = embedded
        self.diffusion_step_encoder = nn.Sequential(
            nn.Identity(), nn.Linear(embedded, 4 * embedded), nn.Mish(), nn.Linear(4 * embedded, embedded)
        )
        widths = config.down_dims
        pairs = list(zip((config.action, *widths), widths, strict=False))
        downs = [nn.Conv1d(width, width, 3, 2, 1) for width in widths[:-1]] + [nn.Identity()]
        self.down_modules = nn.ModuleList(
            nn.ModuleList([block(*pair), block(pair[1], pair[1]), down])
            for pair, down in zip(pairs, downs, strict=True)
        )
        self.mid_modules = nn.ModuleList([block(widths[-1], widths[-1]) for _ in range(2)])
        self.up_modules = nn.ModuleList(
            nn.ModuleList([block(2 * high, low), block(low, low), nn.ConvTranspose1d(low, low, 4, 2, 1)])
            for low, high in reversed(pairs[1:])
        )
        last = ConvBlock(widths[0], widths[0], config.kernel_size, 8)
        self.final_conv = nn.Sequential(last, nn.Conv1d(widths[0], config.action, 1))

    def forward(self, chunk: Tensor, step: int, condition: Tensor) -> Tensor:
        """Return a prediction [N, T, A] for a noisy chunk of that shape at a step of training's."""
        time = self.diffusion_step_encoder(self._embedding(step, condition))
        condition = torch.cat([time.expand(condition.shape[0], -1), condition], dim=-1)
        hidden, skipped = chunk.transpose(1, 2), []
        for first, second, down in self.down_modules:  # pyright: ignore[reportGeneralTypeIssues]
            hidden = second(first(hidden, condition), condition)
            skipped.append(hidden)
            hidden = down(hidden)
        for block in self.mid_modules:
            hidden = block(hidden, condition)
        for first, second, up in self.up_modules:  # pyright: ignore[reportGeneralTypeIssues]
            hidden = torch.cat([hidden, skipped.pop()], dim=1)
            hidden = up(second(first(hidden, condition), condition))
        return self.final_conv(hidden).transpose(1, 2)

    def _embedding(self, step: int, like: Tensor) -> Tensor:
        half = self.embedded // 2
        rates = torch.arange(half, device=like.device) * (-math.log(10000) / (half - 1))
        angles = (step * torch.exp(rates)).unsqueeze(0)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)  # [1, embedded]


class Diffusion(nn.Module):
    """An `export.source.ExportableModel` without command; noise is [B, horizon, A].

    Denoised by DDIM (Song et al. 2021, "Denoising Diffusion Implicit Models") with its unrolled steps: all
    randomness is in the first noise.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.rgb_encoder = nn.ModuleList(Encoder(config) for _ in range(config.encoders))
        self.unet = UNet(config)

    def act(
        self, images: dict[str, Tensor], command: dict[str, Tensor], state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Compute one chunk; see `export.source.ExportableModel`."""
        steps = self.config.n_obs_steps
        encoders = list(self.rgb_encoder) * (self.config.cameras // self.config.encoders)
        pictures = [picture if steps > 1 else picture.unsqueeze(1) for picture in images.values()]
        seen = [
            encoder(picture.flatten(0, 1)).unflatten(0, (-1, steps))  # [B, n, D]
            for encoder, picture in zip(encoders, pictures, strict=True)
        ]
        measured = state if steps > 1 else state.unsqueeze(1)
        condition = torch.cat([measured, *seen], dim=-1).flatten(1)
        start = steps - 1
        chunk = self._denoised(noise, condition)
        return {"actions": chunk[:, start : start + self.config.n_action_steps]}

    def _denoised(self, chunk: Tensor, condition: Tensor) -> Tensor:
        config = self.config
        left = remaining(config).tolist()
        stride = config.num_train_timesteps // config.steps
        for step in reversed(range(0, stride * config.steps, stride)):
            now, then = left[step], left[step - stride] if step >= stride else 1.0
            predicted = self.unet(chunk, step, condition)
            if config.prediction_type == "epsilon":
                noise, clean = predicted, (chunk - math.sqrt(1 - now) * predicted) / math.sqrt(now)
            else:
                noise, clean = (chunk - math.sqrt(now) * predicted) / math.sqrt(1 - now), predicted
            if config.clip_sample:
                clean = clean.clamp(-config.clip_sample_range, config.clip_sample_range)
            chunk = math.sqrt(then) * clean + math.sqrt(1 - then) * noise
        return chunk


def remaining(config: Config) -> Tensor:
    """Return how much of the signal's variance is left at each step of training: float32 [steps].

    The schedules are those of the library diffusers, under its names.
    """
    count = config.num_train_timesteps
    if config.beta_schedule == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021

        def signal(place: float) -> float:
            return math.cos((place + 0.008) / 1.008 * math.pi / 2) ** 2

        pairs = [(signal(step / count), signal((step + 1) / count)) for step in range(count)]
        betas = torch.tensor([min(1 - after / before, 0.999) for before, after in pairs], device="cpu")
    else:
        power = 0.5 if config.beta_schedule == "scaled_linear" else 1.0
        first, last = config.beta_start**power, config.beta_end**power
        betas = torch.linspace(first, last, count, dtype=torch.float32, device="cpu") ** (1 / power)
    return torch.cumprod(1 - betas, dim=0)


def group_norm(width: int) -> nn.Module:
    """Return the normalisation that LeRobot puts in place of a batch's: 16 channels a group."""
    return nn.GroupNorm(width // 16, width)
