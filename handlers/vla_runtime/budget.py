"""What decoding a picture costs, estimated from its headers, and how much of it one batch takes on.

Costs are nominal milliseconds of one core: computed from rates that were measured once, never from a clock,
so that equal pictures are taken or refused alike, whatever else the host does. On another machine all of them
are longer or shorter by about one factor.
"""

import io
from collections.abc import Mapping

from PIL import Image

from vla_runtime.containers import riff_chunks

# Rates are the highest that were found over pictures from flat to noisy [ns].
# A byte of the file.
JPEG_BYTE, PROGRESSIVE_BYTE, PNG_BYTE, LOSSY_BYTE, LOSSLESS_BYTE = 12.0, 45.0, 27.0, 90.0, 16.0
# A pixel of a JPEG: its entropy decoding, and what shrinks with the scale; or one of a scan of several.
JPEG_PIXEL, JPEG_SCALED_PIXEL, SCAN_PIXEL = 0.6, 2.9, 0.7
# How much more a CMYK picture takes, which is decoded twice.
CMYK = 2.5
# A byte of a PNG's pixels; twice as much where they are interlaced.
PNG_RAW_BYTE = 2.5
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
WEBP_PIXEL, WEBP_ALPHA_PIXEL = 8.0, 7.0
# A pixel before and after resizing, and a picture of whatever size.
RESIZED_PIXEL, MADE_PIXEL, PICTURE = 8.0, 10.0, 500_000.0


def decoding_ms(image: Image.Image, scale: int, made: int) -> float:
    """Estimate what decoding and resizing an opened picture cost [nominal ms].

    Args:
        image: headers read, pixels not decoded yet, its file in memory; or raw pixels
        scale: by how much a JPEG is made smaller while it is decoded: 1, 2, 4 or 8
        made: pixels after resizing
    """
    pixels = image.width * image.height
    file: object = getattr(image, "fp", None)
    data = file.getvalue() if isinstance(file, io.BytesIO) else b""
    if data.startswith(b"\xff\xd8"):
        cost = _jpeg_ns(data, pixels, scale, image)
    elif data.startswith(b"\x89PNG"):
        cost = _png_ns(data, pixels)
    elif data.startswith(b"RIFF"):
        cost = _webp_ns(data, pixels)
    else:
        cost = 0.0
    return (cost + RESIZED_PIXEL * pixels / scale**2 + MADE_PIXEL * made + PICTURE) / 1e6


def _jpeg_ns(data: bytes, pixels: int, scale: int, image: Image.Image) -> float:
    scaled = JPEG_PIXEL + JPEG_SCALED_PIXEL / scale**2
    if "progressive" in image.info:
        cost = PROGRESSIVE_BYTE * len(data) + pixels * (scaled + SCAN_PIXEL * data.count(b"\xff\xda"))
    else:
        cost = JPEG_BYTE * len(data) + pixels * scaled
    return cost * (CMYK if image.mode == "CMYK" else 1)


def _png_ns(data: bytes, pixels: int) -> float:
    depth, colour, interlaced = data[24], data[25], data[28]
    raw = pixels * PNG_CHANNELS.get(colour, 4) * depth / 8  # [bytes]
    return PNG_BYTE * len(data) + PNG_RAW_BYTE * raw * (2 if interlaced else 1)


def _webp_ns(data: bytes, pixels: int) -> float:
    names = [name for name, _ in riff_chunks(data)]
    lossy = sum(size for name, size in riff_chunks(data) if name in (b"VP8 ", b"ANMF"))
    alpha = b"VP8X" in names or b"VP8L" in names
    cost = LOSSY_BYTE * lossy + LOSSLESS_BYTE * (len(data) - lossy)
    return cost + pixels * (WEBP_PIXEL + (WEBP_ALPHA_PIXEL if alpha else 0))


def too_much(costs: Mapping[int, float], capacity: float, share: float) -> set[int]:
    """Choose whose pictures are not decoded, so that a batch's decoding stays within what it may take.

    Whoever costs no more than its share is always decoded. The others are, the cheapest first, while the
    capacity lasts; one of them is whatever it costs, so that a lone large picture is answered.

    Args:
        costs: of each request [nominal ms], by its place in the batch
        capacity: of the batch [nominal ms]
        share: of a request [nominal ms]

    Returns:
        the places of those to refuse
    """
    spent = sum(cost for cost in costs.values() if cost <= share)
    over = sorted((cost, place) for place, cost in costs.items() if cost > share)
    refused: set[int] = set()
    for index, (cost, place) in enumerate(over):
        if index and spent + cost > capacity:
            refused.add(place)
        spent += cost
    return refused
