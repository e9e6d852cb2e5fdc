"""A decision as a picture: what the policy sees, warm where the command looks, and what it says of it."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Edge of one camera's picture, and height of a line below it [pixels].
EDGE, LINE = 384, 18
# Letters in a line below one picture.
LETTERS = 52
WARM = np.array([255, 64, 0], np.float32)
FRAME = (0, 255, 0)


class Box(NamedTuple):
    """Where a policy says that the object lies: in which camera, as shares of its picture's edges."""

    camera: int
    left: float
    top: float
    right: float
    bottom: float


def box_of(extras: Mapping[str, Any]) -> Box | None:
    """Return the box among a policy's further outputs, if there is one."""
    box = extras.get("box")
    return Box(int(extras.get("box_camera", 0)), *box) if isinstance(box, list) and len(box) == 4 else None


def overlay(
    pictures: Sequence[np.ndarray], attention: np.ndarray | None, box: Box | None = None, said: str = ""
) -> bytes:
    """Draw the attention over what the policy saw.

    Args:
        pictures: the newest one a camera, uint8 [3, H, W]
        attention: float32 [C, h, w], non-negative; None: the policy gives none
        box: what is framed
        said: text below

    Returns:
        a PNG picture, C * EDGE pixels wide, and EDGE and the text's lines high
    """
    heats = np.zeros((len(pictures), 1, 1), np.float32) if attention is None else attention
    panels = [_panel(*pair) for pair in zip(pictures, heats, strict=True)]
    lines = textwrap.wrap(said, LETTERS * len(panels))
    size = (EDGE * len(panels), EDGE + (LINE * len(lines) + LINE // 2 if lines else 0))
    sheet = Image.new("RGB", size, "white")
    sheet.paste(Image.fromarray(np.concatenate(panels, axis=1)))
    draw = ImageDraw.Draw(sheet)
    if box is not None and 0 <= box.camera < len(panels):
        corners = [EDGE * min(max(share, 0.0), 1.0) for share in box[1:]]
        left, top, right, bottom = corners
        if left <= right and top <= bottom:
            aside = EDGE * box.camera
            draw.rectangle((aside + left, top, aside + right, bottom), outline=FRAME, width=2)
    draw.multiline_text((6, EDGE + 3), "\n".join(lines), "black", ImageFont.load_default(14), spacing=4)
    file = io.BytesIO()
    sheet.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _panel(seen: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend one picture uint8 [3, H, W] and its heat float32 [h, w] to uint8 [EDGE, EDGE, 3]."""
    size = (EDGE, EDGE)
    grey = (255 * heat / max(float(heat.max()), 1e-12)).astype(np.uint8)
    weight = (
        np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    )
    base = np.asarray(
        Image.fromarray(seen.transpose(1, 2, 0)).resize(size, Image.Resampling.BICUBIC), np.float32
    )
    return (base * (1 - 0.7 * weight) + WARM * 0.7 * weight).round().astype(np.uint8)
