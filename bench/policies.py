"""The policies that are measured, as archives."""

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from export.export import Options, export
from vla.models import build
from vla.training import checkpoint
from vla_runtime.spec import (
    Camera,
    ContinuousSpace,
    Dimension,
    Precision,
    Safety,
    Statistics,
    Tokenizer,
    Vector,
)

ROOT = Path(__file__).resolve().parent.parent
# What decides how a random policy is made: when it changes, the archive is made anew.
MODULES = (f"vla/models/{name}.py" for name in ("clip", "clip_towers", "spatial"))
SOURCES = ("bench/policies.py", "export", "handlers", *MODULES)
BUCKETS = (1, 2, 4, 8, 16, 32)


# Sizes of the towers of CLIP ViT-B/32, with pictures of 224 pixels.
TEXT_B32 = {"text_width": 512, "text_layers": 12, "text_heads": 8, "text_inner": 2048}
VISION_B32 = {"vision_width": 768, "vision_layers": 12, "vision_heads": 12, "vision_inner": 3072, "patch": 32}


@dataclass(frozen=True)
class Random:
    """A `clip` policy of random weights."""

    # Values of `vla.models.clip.Config`.
    model: dict[str, Any]
    # Edge of its picture [pixels].
    size: int


RANDOM = {
    "clip_tiny": Random(
        {"text_width": 32, "text_layers": 1, "text_heads": 2, "text_inner": 64, "vision_width": 32}
        | {"vision_layers": 1, "vision_heads": 2, "vision_inner": 64, "patch": 16, "width": 32},
        64,
    ),
    "clip_b32": Random(TEXT_B32 | VISION_B32 | {"width": 512}, 224),
    # 38 layers of 12 x 2560 x 2560 weights each.
    "clip_3b": Random(
        TEXT_B32
        | {"vision_width": 2560, "vision_layers": 38, "vision_heads": 20, "vision_inner": 10240, "patch": 14}
        | {"width": 512},
        224,
    ),
}


def random_archive(folder: Path, name: str, precision: Precision) -> Path:
    """Export a policy of RANDOM for this machine, or return it where the same code has made it already.

    Returns:
        the archive's path in `folder`
    """
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    made_of = RANDOM[name]
    digest = hashlib.sha256(repr((made_of, precision, device)).encode())
    for file in _files(SOURCES):
        digest.update(file.read_bytes())
    archive, made_by = folder / f"{name}.mar", folder / f"{name}.sha256"
    if archive.is_file() and made_by.is_file() and made_by.read_text() == digest.hexdigest():
        return archive
    source = folder / f"{name}.checkpoint"
    write_checkpoint(source, name, made_of.model, made_of.size)
    export(Options(str(source), archive, buckets=BUCKETS, precision=precision, device=device))
    shutil.rmtree(source)
    made_by.write_text(digest.hexdigest())
    return archive


def write_checkpoint(folder: Path, name: str, model: dict[str, Any], size: int) -> None:
    """Write a checkpoint of a `clip` policy with random weights, one camera and four state dimensions."""
    config = checkpoint.Config(
        name=name,
        architecture="clip",
        model=model,
        cameras=(Camera(name="front", width=size, height=size),),
        tokenizer=Tokenizer(file="tokenizer.json", context_length=77, pad_id=49407),
        state=Vector(**_vector(("x", "m", 0.3), ("y", "m", 0.3), ("z", "m", 0.3), ("opening", "1", 1.0))),
        action=ContinuousSpace(
            **_vector(
                ("delta_x", "m", 0.03), ("delta_y", "m", 0.03), ("delta_z", "m", 0.03), ("grip", "1", 1.0)
            ),
            horizon=8,
            control_hz=10.0,
        ),
        safety=Safety(),
        training={},
    )
    torch.manual_seed(0)
    module = build("clip", model, config.sizes())
    # Token embeddings start at zero, which would make every command alike.
    torch.nn.init.normal_(module.get_parameter("text.embeddings.token_embedding.weight"), std=0.02)
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    frame = checkpoint.Frame(pixels, "lift the red block", np.zeros(4, np.float32))
    checkpoint.save(folder, config, module, frame, {"weights": "random, seed 0"}, half=False)


def _vector(*dimensions: tuple[str, str, float]) -> dict[str, Any]:
    """Describe dimensions (name, unit, bound): symmetric, normalised by their bounds."""
    bounds = tuple(bound for *_, bound in dimensions)
    low = tuple(-bound for bound in bounds)
    return {
        "dimensions": tuple(Dimension(name=n, unit=u, low=-bound, high=bound) for n, u, bound in dimensions),
        "normalisation": "bounds",
        "statistics": Statistics(mean=(0.0,) * len(bounds), std=(1.0,) * len(bounds), q01=low, q99=bounds),
    }


def _files(places: Iterable[str]) -> list[Path]:
    found = [
        sorted((ROOT / place).rglob("*.py")) if (ROOT / place).is_dir() else [ROOT / place]
        for place in places
    ]
    return [file for files in found for file in files]
