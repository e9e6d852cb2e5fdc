"""The pictures and commands that robots send, and the forms that carry them.

Half of the pictures are recorded simulator frames, half are photographs that scikit-image ships. Each is
cropped, lit and noised anew, and each request adds a JPEG comment of its own: no two have equal bytes.
"""

import importlib.util
import io
from collections.abc import Mapping
from functools import cache
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
BOUNDARY = "vla-serve-load-test"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
JPEG_QUALITY = 90
# Standard deviation of a pixel's noise, of 255.
NOISE = 3.0
# Edge of the field of noise that pictures take theirs from; the largest picture [pixels].
NOISE_EDGE = 1024


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


def pictures(count: int, sizes: tuple[tuple[int, int], ...], seed: int) -> list[bytes]:
    """Return `count` JPEG files of different pixels, their sizes (width, height) taken in turn [pixels]."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, NOISE, (NOISE_EDGE, NOISE_EDGE, 3)).astype(np.float32)
    originals = sources()
    return [
        _encode(_vary(originals[i % len(originals)], sizes[i % len(sizes)], noise, random))
        for i in range(count)
    ]


def numbered(jpeg: bytes, number: int) -> bytes:
    """Return the JPEG file with a comment that holds a number; its pixels stay as they are."""
    comment = b"%020d" % number
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def form(images: Mapping[str, bytes], fields: Mapping[str, str]) -> bytes:
    """Return a multipart body of JPEG pictures and texts, to be sent with content type `FORM`."""
    parts = [_part(f'{name}"; filename="{name}.jpg', b"image/jpeg", data) for name, data in images.items()]
    parts += [_part(name, b"text/plain; charset=utf-8", text.encode()) for name, text in fields.items()]
    return b"".join([*parts, b"--%b--\r\n" % BOUNDARY.encode()])


def _part(name: str, content_type: bytes, data: bytes) -> bytes:
    return b'--%b\r\nContent-Disposition: form-data; name="%b"\r\nContent-Type: %b\r\n\r\n%b\r\n' % (
        BOUNDARY.encode(),
        name.encode(),
        content_type,
        data,
    )


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


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
