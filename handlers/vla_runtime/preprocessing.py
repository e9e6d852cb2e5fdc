"""Pictures and commands to tensors: CLIP's image transform and byte-pair tokenizer (Radford et al. 2021).

Training and serving share these functions, so there is no train/serve skew. They agree with transformers'
`CLIPImageProcessor` and `CLIPTokenizer`; `tests/unit/test_preprocessing.py` states to what tolerance.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import tokenizers
import torch
from PIL import Image, ImageOps

from vla_runtime.errors import BadImage, InvalidValue, SpecError
from vla_runtime.spec import Camera, PolicySpec, Tokenizer


def picture(image: Image.Image, camera: Camera, field: str = "image") -> np.ndarray:
    """Decode, turn upright by EXIF, convert to RGB, resize the shortest edge (bicubic), crop the centre.

    A JPEG of at least twice the size is decoded at reduced scale, see `decoded`.

    Args:
        image: headers read, pixels decoded here
        camera: the size to make
        field: the request's field, for the error

    Returns:
        uint8 [3, size, size]

    Raises:
        BadImage: the pixels can't be decoded, or the picture is too long and thin to be resized.
    """
    size, (width, height) = camera.size, image.size
    if max(width, height) > 32 * min(width, height):
        raise BadImage(field, f"{width} x {height} pixels is too long and thin")
    rgb = decoded(image, size, field)
    resized = _resized(*rgb.size, size)
    if resized != rgb.size:
        rgb = rgb.resize(resized, Image.Resampling.BICUBIC)
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    return np.asarray(rgb.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def decoded(image: Image.Image, size: int, field: str = "image") -> Image.Image:
    """Decode into upright RGB with a shortest edge of at least `size`.

    A large JPEG is decoded at 1/2, 1/4 or 1/8 scale, which its format allows at a fraction of the cost and
    which stands for the first part of the resizing.

    Raises:
        BadImage: the pixels can't be decoded.
    """
    try:
        if image.format == "JPEG":
            image.draft(None, _resized(*image.size, size))
        ImageOps.exif_transpose(image, in_place=True)
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # damaged pictures raise many types
        raise BadImage(field, "the picture is damaged or cut short") from error


def _resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Return width and height when the shortest edge becomes `size`."""
    return (size, int(size * height / width)) if width <= height else (int(size * width / height), size)


def normalise_pictures(pictures: torch.Tensor, cameras: Sequence[Camera]) -> torch.Tensor:
    """Scale to [0, 1] and normalise by each camera's channel statistics.

    Args:
        pictures: uint8 [B, C, 3, H, W]
        cameras: the C cameras, in order

    Returns:
        float32 [B, C, 3, H, W] on the pictures' device
    """
    scale, shift = _affine(tuple(cameras), pictures.device)
    # In place: one new array instead of four.
    return pictures.float().mul_(scale).sub_(shift)


@lru_cache(maxsize=8)
def _affine(cameras: tuple[Camera, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 1 / (255 std) and mean / std, float32 [C, 3, 1, 1], kept on the device between batches."""
    with torch.inference_mode(mode=False):
        mean = torch.tensor([camera.mean for camera in cameras])[..., None, None]
        std = torch.tensor([camera.std for camera in cameras])[..., None, None]
        return (1 / (255 * std)).to(device), (mean / std).to(device)


class CommandTokenizer:
    """Text to padded token ids."""

    def __init__(self, folder: Path, spec: Tokenizer) -> None:
        """Read the tokenizer's file from a folder.

        Raises:
            SpecError: the file is missing or is no tokenizer.
        """
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / spec.file))
        except Exception as error:  # tokenizers raises bare Exception
            raise SpecError(f"tokenizer {spec.file} can't be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._length = spec.context_length
        self._pad_id = spec.pad_id

    @property
    def vocabulary(self) -> int:
        """Number of entries of the vocabulary."""
        return self._tokenizer.get_vocab_size()

    def __call__(self, command: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokenize one command.

        Returns:
            ids int64 [L] and attention mask int64 [L] (1 for a token, 0 for padding)

        Raises:
            InvalidValue: the command has more tokens than the policy reads; it is never cut silently.
        """
        ids = self._tokenizer.encode(command).ids
        if len(ids) > self._length:
            raise InvalidValue("command", f"has {len(ids)} tokens; the policy reads at most {self._length}")
        padding = self._length - len(ids)
        mask = np.repeat(np.array([1, 0]), [len(ids), padding])
        return np.array(ids + [self._pad_id] * padding), mask


def noise(seed: int, spec: PolicySpec) -> np.ndarray:
    """Draw a stochastic policy's noise from the request's seed alone.

    Returns:
        float32 [T, A], standard normal; [0, 0] for a policy without noise
    """
    if not spec.artifact.stochastic:
        return np.zeros((0, 0), np.float32)
    shape = (spec.action.horizon, spec.action.width)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
