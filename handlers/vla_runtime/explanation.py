"""An attention map as a picture: what the policy sees, warm where the command looks."""

import io
import sys

import numpy as np
from PIL import Image

from vla_runtime.images import Limits
from vla_runtime.observation import Row, decode
from vla_runtime.preprocessing import picture
from vla_runtime.spec import PolicySpec

# Edge of one camera's picture [pixels].
EDGE = 384
# A row that the policy has answered kept to the limits already.
ANSWERED = Limits(max_pixels=sys.maxsize, max_scans=sys.maxsize, allow_damaged=True)
WARM = np.array([255, 64, 0], np.float32)


def overlay(row: Row, attention: np.ndarray, spec: PolicySpec) -> bytes:
    """Draw the attention over the request's pictures.

    Args:
        row: a request that the policy has answered
        attention: float32 [C, h, w], non-negative
        spec: the policy's spec

    Returns:
        a PNG picture of [EDGE, C * EDGE] pixels
    """
    images = [steps[-1] for steps in decode(row, spec, 0.0, ANSWERED).images]  # the newest of each camera
    parts = zip(images, spec.cameras, attention, strict=True)
    panels = [_panel(picture(image, camera), heat) for image, camera, heat in parts]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(panels, axis=1)).save(file, "PNG")
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
