"""Pictures and commands to tensors: the cameras' rules, and any tokenizer of the `tokenizers` library.

Training and serving share these functions, so there is no train/serve skew. They agree with transformers'
`CLIPImageProcessor` and `CLIPTokenizer`, and with the libraries that define the other rules;
`tests/unit/runtime/test_preprocessing.py` and `test_camera_rules.py` state to what tolerance.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import tokenizers
import torch
from PIL import Image, ImageOps

from vla_runtime.budget import decoding_ms
from vla_runtime.errors import BadImage, InvalidValue, SpecError
from vla_runtime.images import is_jpeg, jpeg_pixels
from vla_runtime.spec import Camera, PolicySpec, Tokenizer, Vector

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def picture(image: Image.Image, camera: Camera, field: str = "image") -> np.ndarray:
    """Decode, turn upright by EXIF, convert to RGB, and fit into the camera's size by its rule.

    A JPEG of at least twice the size is decoded at reduced scale, see `decoded`.

    Args:
        image: headers read, pixels decoded here
        camera: the size to make, and how
        field: the request's field, for the error

    Returns:
        uint8 [3, height, width]

    Raises:
        BadImage: the pixels can't be decoded, or the picture is too long and thin to be resized.
        InvalidValue: the picture does not have the size that a camera with the rule `none` needs.
    """
    width, height = image.size
    if max(width, height) > 32 * min(width, height):
        raise BadImage(field, f"{width} x {height} pixels is too long and thin")
    rgb = decoded(image, camera, field)
    target = (camera.width, camera.height)
    if camera.resize == "none" and rgb.size != target:
        raise InvalidValue(
            field, f"must have {target[0]} x {target[1]} pixels, got {rgb.size[0]} x {rgb.size[1]}"
        )
    resized = resized_to(rgb.size, camera)
    if resized != rgb.size:
        rgb = rgb.resize(resized, FILTERS[camera.interpolation])
    if resized != target:
        rgb = _cropped(rgb, target) if camera.resize == "crop" else _padded(rgb, target)
    return np.asarray(rgb).transpose(2, 0, 1)


def decoded(image: Image.Image, camera: Camera, field: str = "image") -> Image.Image:
    """Decode into upright RGB, no smaller than what the camera's rule makes of it.

    A large JPEG is decoded at 1/2, 1/4 or 1/8 scale, which its format allows at a fraction of the cost and
    which stands for the first part of the resizing.

    Raises:
        BadImage: the pixels can't be decoded.
    """
    try:
        scale = _scale(image, camera) if is_jpeg(image) else 1
        picture = jpeg_pixels(image, scale, field)
        if picture is None:
            picture = image
            picture.draft(None, (image.width // scale, image.height // scale))
        ImageOps.exif_transpose(picture, in_place=True)
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except BadImage:
        raise
    except Exception as error:  # damaged pictures raise many types
        raise BadImage(field, "the picture is damaged or cut short") from error


def cost_ms(image: Image.Image, camera: Camera) -> float:
    """Estimate what `picture` costs [nominal ms of one core], before any pixel is decoded."""
    scale = _scale(image, camera) if is_jpeg(image) else 1
    return decoding_ms(image, scale, camera.width * camera.height)


def _scale(image: Image.Image, camera: Camera) -> int:
    """Return by how much a JPEG is made smaller while it is decoded: 1, 2, 4 or 8."""
    if camera.resize == "none" or camera.interpolation == "nearest":
        return 1
    # Before it is turned upright: the larger of both orientations, so that either is large enough.
    (width, height), turned = (
        resized_to(image.size, camera),
        resized_to((image.height, image.width), camera),
    )
    spare = min(image.width // max(width, turned[1]), image.height // max(height, turned[0]))
    return next(scale for scale in (8, 4, 2, 1) if spare >= scale or scale == 1)


def resized_to(size: tuple[int, int], camera: Camera) -> tuple[int, int]:
    """Return the width and height that a picture is resized to before it is cropped or padded."""
    width, height = size
    if camera.resize == "stretch":
        return camera.width, camera.height
    if camera.resize == "pad":  # openpi's image_tools.resize_with_pad rounds down
        ratio = max(width / camera.width, height / camera.height)
        return max(1, int(width / ratio)), max(1, int(height / ratio))
    if camera.resize == "none":
        return width, height
    if camera.width * height >= camera.height * width:  # as narrow as the camera, or narrower
        return camera.width, max(camera.height, int(camera.width * height / width))
    return max(camera.width, int(camera.height * width / height)), camera.height


def _cropped(rgb: Image.Image, target: tuple[int, int]) -> Image.Image:
    left, top = (rgb.width - target[0]) // 2, (rgb.height - target[1]) // 2
    return rgb.crop((left, top, left + target[0], top + target[1]))


def _padded(rgb: Image.Image, target: tuple[int, int]) -> Image.Image:
    padded = Image.new("RGB", target)
    padded.paste(rgb, ((target[0] - rgb.width) // 2, (target[1] - rgb.height) // 2))
    return padded


def normalise_pictures(pictures: torch.Tensor, cameras: Sequence[Camera]) -> torch.Tensor:
    """Give the pictures of several cameras of one size their values.

    Args:
        pictures: uint8 [B, C, 3, H, W]
        cameras: the C cameras, in order

    Returns:
        float32 [B, C, 3, H, W] on the pictures' device
    """
    columns = zip(pictures.unbind(1), cameras, strict=True)
    return torch.stack([normalise_picture(*column) for column in columns], dim=1)


def normalise_picture(pictures: torch.Tensor, camera: Camera) -> torch.Tensor:
    """Give one camera's pictures their values: uint8 [..., 3, H, W] to float32 of the same shape."""
    scale, shift = _affine(camera.statistics, pictures.device)
    # In place: one new array instead of four.
    return pictures.float().mul_(scale).sub_(shift)


@lru_cache(maxsize=32)
def _affine(
    statistics: tuple[tuple[float, ...], tuple[float, ...]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 1 / (255 std) and mean / std, float32 [3, 1, 1], kept on the device between batches."""
    with torch.inference_mode(mode=False):
        mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
        return (1 / (255 * std)).to(device), (mean / std).to(device)


class CommandTokenizer:
    """Text to padded token ids."""

    def __init__(self, folder: Path, spec: Tokenizer) -> None:
        """Read the tokenizer's file from a folder.

        Raises:
            SpecError: the file is missing or is no tokenizer.
        """
        path = folder / spec.file
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise SpecError(f"tokenizer {path.name} can't be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._spec = spec

    @property
    def vocabulary(self) -> int:
        """Number of entries of the vocabulary."""
        return self._tokenizer.get_vocab_size()

    def __call__(self, command: str, bins: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Tokenize one command, in its template.

        Args:
            command: the request's text
            bins: of the state, from `state_bins`

        Returns:
            ids int64 [L] and attention mask int64 [L] (1 for a token, 0 for padding)

        Raises:
            InvalidValue: the command has more tokens than the policy reads; it is never cut silently.
        """
        spec = self._spec
        if spec.tidy:
            command = command.strip().replace("_", " ").replace("\n", " ")
        elif "{command}\n" in spec.template:
            # LeRobot ends a line only where the command did not.
            command = command.removesuffix("\n")
        # The command last: what it says is never read as a part of the template.
        prompt = spec.template.replace("{state}", " ".join(map(str, bins))).replace("{command}", command)
        ids = self._tokenizer.encode(prompt).ids
        if len(ids) > spec.context_length:
            raise InvalidValue(
                "command", f"has {len(ids)} tokens; the policy reads at most {spec.context_length}"
            )
        padding = 0 if spec.padding == "longest" else spec.context_length - len(ids)
        before, after = (padding, 0) if spec.side == "left" else (0, padding)
        padded = [spec.pad_id] * before + ids + [spec.pad_id] * after
        mask = np.repeat(np.array([0, 1, 0]), [before, len(ids), after])
        return np.array(padded, np.int64), mask


def state_bins(state: np.ndarray, vector: Vector | None, tokenizer: Tokenizer | None) -> Sequence[int]:
    """Return what a prompt says of the state, float32 [S] in physical units; nothing where it names none."""
    return (
        vector.binned(state, tokenizer.state_bins) if vector and tokenizer and tokenizer.reads_state else ()
    )


def noise(seed: int, spec: PolicySpec) -> np.ndarray:
    """Draw a stochastic policy's noise from the request's seed alone.

    Returns:
        float32 of the spec's shape, standard normal; [0, 0] for a policy without noise
    """
    if spec.noise is None:
        return np.zeros((0, 0), np.float32)
    return np.random.default_rng(seed).standard_normal(spec.noise, dtype=np.float32)
