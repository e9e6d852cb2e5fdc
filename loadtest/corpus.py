"""The pictures and commands that robots send.

Half of the pictures are recorded simulator frames, half are photographs that scikit-image ships. Each is
cropped, lit and noised anew, and each request adds a JPEG comment of its own: no two have equal bytes.
"""

import importlib.util
import io
from collections.abc import Iterable
from functools import cache
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).resolve().parent / "corpus"
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)
JPEG_QUALITY = 90
# Where files of a certain size are wanted: the qualities that are tried, on so many pictures.
QUALITIES = range(30, 100, 5)
TRIED = 12
# Standard deviation of a pixel's noise, of 255.
NOISE = 3.0
# Edge of the field of noise that pictures take theirs from; the largest picture [pixels].
NOISE_EDGE = 1280


@cache
def commands() -> tuple[str, ...]:
    """Return the commands that the frames were recorded under."""
    return tuple((FOLDER / "commands.txt").read_text().splitlines())


@cache
def sources() -> tuple[Image.Image, ...]:
    """Return the pictures that all others are made from, simulator frames and photographs in turn."""
    frames = [_open(path) for path in sorted(FOLDER.glob("*.jpg"))]
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("scikit-image is not installed: pip install 'vla-serve[loadtest]'")
    folder = Path(package.origin).parent / "data"  # its own loader would import all of SciPy
    photographs = [_open(folder / name) for name in PHOTOGRAPHS]
    return tuple(
        picture for i, frame in enumerate(frames) for picture in (frame, photographs[i % len(photographs)])
    )


def pictures(
    count: int, sizes: tuple[tuple[int, int], ...], seed: int, kilobytes: float | None = None
) -> list[bytes]:
    """Return `count` JPEG files of different pixels.

    Args:
        count: how many
        sizes: (width, height), taken in turn [pixels]
        seed: of crops, light and noise
        kilobytes: mean size of the files, which their quality is chosen for [KB]; None: quality 90
    """
    random = np.random.default_rng(seed)
    noise = random.normal(0, NOISE, (NOISE_EDGE, NOISE_EDGE, 3)).astype(np.float32)
    originals = sources()
    varied = (
        _vary(originals[i % len(originals)], sizes[i % len(sizes)], noise, random) for i in range(count)
    )
    first = list(islice(varied, TRIED))
    quality = JPEG_QUALITY if kilobytes is None else _quality(first, 1000 * kilobytes)
    return [_encode(pixels, quality) for pixels in chain(first, varied)]


def numbered(jpeg: bytes, number: int) -> bytes:
    """Return the JPEG file with a comment that holds a number; its pixels stay as they are."""
    comment = b"%020d" % number
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _vary(
    picture: Image.Image, size: tuple[int, int], noise: NDArray[np.float32], random: np.random.Generator
) -> NDArray[np.uint8]:
    """Crop a part of the picture, scale it to the size, light it differently and add noise."""
    edge = random.uniform(0.75, 1.0, 2) * picture.size
    left, top = random.uniform(0, 1, 2) * (picture.size - edge)
    scaled = picture.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + edge[0], top + edge[1]))
    width, height = size
    x, y = random.integers(0, NOISE_EDGE - width + 1), random.integers(0, NOISE_EDGE - height + 1)
    pixels = np.asarray(scaled, np.float32) * random.uniform(0.8, 1.2) + noise[y : y + height, x : x + width]
    return pixels.clip(0, 255).astype(np.uint8)


def _quality(pictures: Iterable[NDArray[np.uint8]], wanted: float) -> int:
    """Return the JPEG quality at which these pictures have about the wanted mean size [bytes]."""
    sizes = {quality: np.mean([len(_encode(p, quality)) for p in pictures]) for quality in QUALITIES}
    return min(sizes, key=lambda quality: abs(sizes[quality] - wanted))


def _encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
