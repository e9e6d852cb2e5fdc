"""An attention map as a picture: what the policy sees, warm where the command looks."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Edge of one camera's picture [pixels].
EDGE = 384
WARM = np.array([255, 64, 0], np.float32)


def overlay(pictures: Sequence[np.ndarray], attention: np.ndarray) -> bytes:
    """Draw the attention over what the policy saw.

    Args:
        pictures: the newest one a camera, uint8 [3, H, W]
        attention: float32 [C, h, w], non-negative

    Returns:
        a PNG picture of [EDGE, C * EDGE] pixels
    """
    panels = [_panel(*pair) for pair in zip(pictures, attention, strict=True)]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(panels, axis=1)).save(file, "PNG", compress_level=1)
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
