"""What the robot sees, is told and measures, and its form on the wire."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, cast

import numpy as np
import PIL.Image
from numpy.typing import NDArray

# uint8 [H, W, 3] RGB in [0, 255], or the bytes of a JPEG, PNG or WebP file, sent as they are.
Image = Union[NDArray[np.uint8], bytes]
# One camera's picture; of a policy with a history of n steps its last n, oldest first.
Pictures = Union[Image, Sequence[Image]]
# How arrays are encoded: JPEG of quality 95 is small, PNG is lossless.
Encoding = Literal["jpeg", "png"]
# How arrays travel: encoded, or as raw pixels, which spare both sides work: for a server on the same host.
Sent = Literal["jpeg", "png", "raw"]

_JPEG_QUALITY = 95


@dataclass(frozen=True, eq=False)
class Observation:
    """One request to a policy.

    Raises:
        TypeError: an image is neither an array nor bytes.
        ValueError: an array is not uint8 [H, W, 3], the state or `previous` is not a list of finite numbers,
            or the delay is negative.
    """

    # One camera's picture, or {camera name: picture} for a policy with several.
    image: Pictures | Mapping[str, Pictures]
    # What the robot is told, 1 to 512 characters; empty for a policy that takes no command.
    command: str
    # Proprioceptive state, float [S], in the units of the policy's spec; with a history [n, S], oldest first;
    # None for a policy without state.
    state: Sequence[float] | Sequence[Sequence[float]] | NDArray[np.float32] | None = None
    # Seed of a stochastic policy; None leaves it to the server, which then answers equal requests equally.
    seed: int | None = None
    # Oldest age at which the server may still compute the answer [ms]; None: any age.
    deadline_ms: float | None = None
    # What the robot does last before the answer, float [A] in the answers' units; with `delay` what is left
    # of the last answer from this moment on, float [T', A], the first `delay` of which are executed before
    # the next one is there. Players say both by themselves to a policy that takes them.
    previous: Sequence[float] | Sequence[Sequence[float]] | NDArray[np.float32] | None = None
    delay: int | None = None

    def __post_init__(self) -> None:
        for field, image in self.images.items():
            _check_image(field, image)
        for field, values in {"state": self.state, "previous": self.previous}.items():
            numbers = np.asarray([0.0] if values is None else values, np.float64)
            if numbers.ndim not in {1, 2} or not np.isfinite(numbers).all():
                raise ValueError(
                    f"{field} must be a list of finite numbers, got shape {numbers.shape}: {numbers.tolist()}"
                )
        if self.delay is not None and self.delay < 0:
            raise ValueError(f"delay must be 0 steps or more, got {self.delay}")

    @property
    def images(self) -> dict[str, Image]:
        """The pictures by their field on the wire: `image` for the only camera, else `image.<camera>`.

        With a history, each followed by its step: `image.<camera>.0` is the oldest.
        """
        cameras = {"image": self.image}
        if isinstance(self.image, Mapping):
            cameras = {f"image.{camera}": image for camera, image in self.image.items()}
        fields: dict[str, Image] = {}
        for field, given in cameras.items():
            if isinstance(given, (list, tuple)):
                fields.update({f"{field}.{step}": image for step, image in enumerate(given)})
            else:
                fields[field] = cast("Image", given)
        return fields

    def encoded(self, sent: Sent = "jpeg", size: int | None = None) -> dict[str, bytes | dict[str, Any]]:
        """Return the pictures by field as they travel: files, or `{shape, dtype, data}` of raw pixels.

        Args:
            sent: how arrays travel; bytes stay as they are
            size: cut arrays to what a policy of this picture size sees [pixels]; None: send them whole
        """
        return {
            field: image if isinstance(image, bytes) else _packed(image, sent, size)
            for field, image in self.images.items()
        }

    def values(self) -> dict[str, Any]:
        """Return the other fields as plain values; absent ones are left out."""
        fields: dict[str, Any] = {"command": self.command} if self.command else {}
        if self.state is not None:
            # A float32 prints the digits of a double, which the server reads back exactly.
            fields["state"] = np.asarray(self.state, np.float64).tolist()
        if self.seed is not None:
            fields["seed"] = self.seed
        if self.deadline_ms is not None:
            fields["deadline_ms"] = self.deadline_ms
        if self.previous is not None:
            fields["previous"] = np.asarray(self.previous, np.float64).tolist()
        if self.delay is not None:
            fields["delay"] = self.delay
        return fields

    def texts(self) -> dict[str, str]:
        """Return the same as the text of form fields: numbers and lists in JSON."""
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in self.values().items()
        }


def encode(image: NDArray[np.uint8], encoding: Encoding, size: int | None = None) -> bytes:
    """Encode a picture, uint8 [H, W, 3] RGB, as JPEG of quality 95 (4:4:4) or as PNG.

    With `size`, its shortest edge is first brought to `size` pixels (bicubic) and the central square cut out,
    as the server would do; a picture that is smaller stays whole, for the server to enlarge.
    """
    buffer = io.BytesIO()
    picture = _cut(image, size)
    if encoding == "jpeg":
        picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _packed(image: NDArray[np.uint8], sent: Sent, size: int | None) -> bytes | dict[str, Any]:
    if sent != "raw":
        return encode(image, sent, size)
    pixels = image if size is None else np.asarray(_cut(image, size))
    return {"shape": list(pixels.shape), "dtype": "uint8", "data": pixels.tobytes()}


def _cut(image: NDArray[np.uint8], size: int | None) -> PIL.Image.Image:
    picture = PIL.Image.fromarray(image)
    return picture if size is None or min(picture.size) < size else _square(picture, size)


def _square(picture: PIL.Image.Image, size: int) -> PIL.Image.Image:
    width, height = picture.size
    short = min(width, height)
    resized = (int(size * width / short), int(size * height / short))
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    smaller = picture.resize(resized, PIL.Image.Resampling.BICUBIC)
    return smaller.crop((left, top, left + size, top + size))


def _check_image(field: str, image: object) -> None:
    if isinstance(image, bytes):
        return
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"{field} must be a uint8 array [H, W, 3] or the bytes of a JPEG, PNG or WebP file, "
            f"got {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{field} must be uint8 [H, W, 3] RGB, got {image.dtype} {list(image.shape)}")
