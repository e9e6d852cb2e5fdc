"""Pictures as robots send them: every one different, at realistic sizes."""

import io
import time
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from vla_client.observation import encode

# Photographs that scikit-image carries along, so that nothing is fetched.
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
SIMULATED_SCENES = 8
SIMULATED_SIZE = 640


@dataclass(frozen=True)
class Kind:
    """What a camera sends."""

    name: str
    # [pixels]
    width: int
    height: int
    # Size of the JPEG file that its quality is chosen for [KB]; None: quality 90.
    kilobytes: float | None = None


KINDS = (
    Kind("224x224", 224, 224),
    Kind("30KB", 640, 480, 30.0),
    Kind("640x480", 640, 480),
    Kind("1280x720", 1280, 720),
)


@cache
def scenes() -> list[NDArray[np.uint8]]:
    """Return what the pictures are cut from, uint8 [H, W, 3]: photographs and frames of the simulator."""
    return [np.asarray(getattr(data, name)()) for name in PHOTOGRAPHS] + _simulated()


def pictures(kind: Kind, count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Cut `count` different pictures: another scene, section, brightness and sensor noise each.

    Returns:
        uint8 [height, width, 3] each, RGB
    """
    random = np.random.default_rng(seed)
    cut = []
    for index in range(count):
        scene = scenes()[index % len(scenes())]
        share = random.uniform(0.6, 1.0)
        width = int(min(scene.shape[1], scene.shape[0] * kind.width / kind.height) * share)
        height = int(width * kind.height / kind.width)
        left = int(random.integers(scene.shape[1] - width + 1))
        top = int(random.integers(scene.shape[0] - height + 1))
        section = Image.fromarray(scene[top : top + height, left : left + width])
        pixels = np.asarray(section.resize((kind.width, kind.height), Image.Resampling.BICUBIC), np.int16)
        coarse = random.integers(-3, 4, (kind.height // 2 + 1, kind.width // 2 + 1, 3), np.int16)
        noise = coarse.repeat(2, 0).repeat(2, 1)[: kind.height, : kind.width]
        brighter = pixels * round(random.uniform(230, 282)) // 256
        cut.append((brighter + noise).clip(0, 255).astype(np.uint8))
    return cut


def jpegs(kind: Kind, count: int, seed: int = 0) -> list[bytes]:
    """Return `count` different JPEG files."""
    cut = pictures(kind, count, seed)
    quality = 90 if kind.kilobytes is None else _quality(cut[: len(scenes())], kind.kilobytes * 1000)
    return [jpeg(pixels, quality) for pixels in cut]


def jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Encode uint8 [H, W, 3] as cameras do: JPEG with halved chroma resolution."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def encode_ms(kind: Kind) -> float:
    """Return the median time that a client takes to encode such a picture [ms]."""
    taken_s = []
    for pixels in pictures(kind, 16):
        begin = time.perf_counter()
        encode(pixels, "jpeg")
        taken_s.append(time.perf_counter() - begin)
    return float(np.median(taken_s)) * 1000


def _quality(cut: list[NDArray[np.uint8]], wanted_bytes: float) -> int:
    """Return the JPEG quality at which these pictures have about the wanted mean size."""

    def miss(quality: int) -> float:
        return abs(sum(len(jpeg(pixels, quality)) for pixels in cut) / len(cut) - wanted_bytes)

    return min(range(30, 96, 5), key=miss)


def _simulated() -> list[NDArray[np.uint8]]:
    """Render the simulated robot, or return nothing where there is no renderer."""
    try:
        from vla.envs.tabletop import Tabletop  # noqa: PLC0415  (MuJoCo needs a display library)

        robot = Tabletop()
        frames = []
        for seed in range(SIMULATED_SCENES):
            robot.reset(seed)
            frames.append(robot.render(SIMULATED_SIZE).copy())
        robot.close()
    except (ImportError, RuntimeError, AttributeError) as error:
        print(f"no simulated frames, photographs only: {error}", flush=True)
        return []
    return frames
