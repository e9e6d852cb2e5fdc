"""Policies of random weights: as sources, as archives, and alone in this process without one."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from bench import bodies
from export.export import Options, archived
from export.flat import flattened
from export.lower import Lowered
from export.native import source_of
from export.source import Observation, Source
from vla.checkpoint import Config, tokenizer_of
from vla.models import build, module_of
from vla_runtime.artifact import Artifact
from vla_runtime.device import prepare
from vla_runtime.module import Module
from vla_runtime.observation import Row
from vla_runtime.policy import Policy
from vla_runtime.spec import (
    ArtifactSpec,
    Camera,
    ContinuousSpace,
    Dimension,
    Example,
    Precision,
    Safety,
    Statistics,
    Vector,
)

ROOT = Path(__file__).resolve().parents[1]
BUCKETS = (1, 2, 4, 8, 16, 32)
# What decides how a random policy is made: when it changes, the archive is made anew.
MADE_BY = ("bench/policies.py", "export", "handlers", "vla/models")
# Names of the state's numbers and of an action's; a state in the bounds of these policies and the default.
NAMES = ("x", "y", "z", "opening")
STATE = (0.0, 0.1, 0.1, 0.04)

Size = Literal["ViT-B/32", "ViT-L/14", "3 billion"]
Name = Literal["tiny", "clip_b32", "clip_3b"]
RANDOM: dict[Name, Callable[[], Source]] = {
    "tiny": lambda: of_architecture("command_attention"),
    "clip_b32": lambda: of_size("ViT-B/32"),
    "clip_3b": lambda: of_size("3 billion"),
}
# Text and vision towers of `clip`: width, layers, heads; patch; width of the embedding that they share.
TOWERS: dict[Size, tuple[tuple[int, int, int], tuple[int, int, int], int, int]] = {
    "ViT-B/32": ((512, 12, 8), (768, 12, 12), 32, 512),
    "ViT-L/14": ((768, 12, 12), (1024, 24, 16), 14, 768),
    # As many weights as pi0 has: 38 layers of 12 x 2560 x 2560 each.
    "3 billion": ((512, 12, 8), (2560, 38, 20), 14, 512),
}


def of_architecture(name: str) -> Source:
    """Return an architecture's default configuration with random weights, as the tabletop would train it."""
    return _source(name, {}, 96)


def of_size(name: Size) -> Source:
    """Return a `clip` policy with towers of this size; its weights are made on the default device."""
    text, vision, patch, width = TOWERS[name]
    values: dict[str, int] = {"patch": patch, "width": width}
    for tower, (inner, layers, heads) in (("text", text), ("vision", vision)):
        values |= {f"{tower}_width": inner, f"{tower}_layers": layers, f"{tower}_heads": heads}
        values[f"{tower}_inner"] = 4 * inner
    return _source("clip", values, 224)


def random_archive(folder: Path, name: Name, precision: Precision) -> Path:
    """Export a policy of RANDOM for this machine, or return it where the same code has made it already.

    Returns:
        the archive's path in `folder`
    """
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    digest = hashlib.sha256(f"{name} {precision} {device}".encode())
    for file in _made_by():
        digest.update(file.read_bytes())
    output, made_by = folder / f"{name}.mar", folder / f"{name}.sha256"
    if not (output.is_file() and made_by.is_file() and made_by.read_text() == digest.hexdigest()):
        options = Options("random weights", output, buckets=BUCKETS, precision=precision, device=device)
        archived(dataclasses.replace(RANDOM[name](), name=name), options)
        made_by.write_text(digest.hexdigest())
    return output


def in_process(
    source: Source, device: str, precision: Precision = "float32", *, tf32: bool = False, graphs: bool = True
) -> Policy:
    """Return a policy that runs the eager module itself, without an archive."""
    flat, layout = flattened(source)
    flat = flat.to(device)
    module: Module = Lowered(flat, device) if precision == "bfloat16" else flat
    artifact = ArtifactSpec(
        file="",
        command=layout.command,
        inputs=layout.inputs,
        buckets=BUCKETS,
        outputs=tuple(sorted({"actions", *source.extras})),
        extras=source.extras,
        precision=precision,
        tf32=tf32,
    )
    example = Example(images={}, command="go", state=(), seed=0, actions=())
    spec = source.spec("random", artifact, example, {})
    made = Artifact(module, spec, prepare(device, tf32=tf32), graphs=graphs)
    return Policy(spec, source.command_tokenizer(), made, threads=8)


def robot_requests(count: int) -> list[Row]:
    """Return different requests that these policies take, as a robot sends them."""
    return bodies.rows(bodies.pictures(count), STATE)


def _source(architecture: str, values: dict[str, int], pixels: int) -> Source:
    torch.manual_seed(0)
    config = Config(
        name=architecture,
        architecture=architecture,
        model=asdict(module_of(architecture).Config(**values)),
        cameras=(Camera(name="front", width=pixels, height=pixels),),
        tokenizer=tokenizer_of(architecture),
        state=Vector(
            dimensions=_dimensions(1.0),
            normalisation="bounds",
            statistics=Statistics(low=(-1.0,) * 4, high=(1.0,) * 4),
        ),
        action=ContinuousSpace(
            dimensions=_dimensions(0.03),
            normalisation="bounds",
            statistics=Statistics(low=(-0.03,) * 4, high=(0.03,) * 4),
            horizon=8,
            control_hz=10.0,
        ),
        safety=Safety(),
        training={},
    )
    model = build(architecture, config.model, config.sizes())
    for parameter in model.parameters():  # tables that start at zero would make every command alike
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    seen = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    example = Observation({"front": seen}, "pick up the red block", STATE)
    return source_of(config, model.eval(), example, {})


def _dimensions(bound: float) -> tuple[Dimension, ...]:
    return tuple(Dimension(name=name, unit="m", low=-bound, high=bound) for name in NAMES)


def _made_by() -> Iterator[Path]:
    for place in MADE_BY:
        path = ROOT / place
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]
