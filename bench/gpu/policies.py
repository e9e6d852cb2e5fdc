"""Policies of random weights, as sources: every architecture, and towers of known sizes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.flat import flattened
from export.lower import Lowered
from export.native import action_space, eager
from export.source import Observation, Source
from vla.exportable import Exportable
from vla.models import Sizes, module_of
from vla_runtime.artifact import Artifact
from vla_runtime.device import prepare
from vla_runtime.policy import Policy
from vla_runtime.spec import (
    ArtifactSpec,
    Camera,
    ContinuousSpace,
    Dimension,
    Example,
    PolicySpec,
    Precision,
    Statistics,
    Tokenizer,
    Vector,
)

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "vla" / "assets" / "clip" / "tokenizer.json"
BUCKETS = (1, 2, 4, 8, 16, 32)

_TEXT = {"text_width": 512, "text_layers": 12, "text_heads": 8, "text_inner": 2048}
_LARGE_TEXT = {"text_width": 768, "text_layers": 12, "text_heads": 12, "text_inner": 3072}


@dataclass(frozen=True)
class Size:
    """A `clip` policy: values of `vla.models.clip.Config`, and its pictures' edge [pixels]."""

    model: dict[str, Any]
    pixels: int = 224


def _vision(width: int, layers: int, heads: int, patch: int) -> dict[str, Any]:
    return {
        "vision_width": width,
        "vision_layers": layers,
        "vision_heads": heads,
        "vision_inner": 4 * width,
        "patch": patch,
    }


SIZES = {
    "ViT-B/32": Size(_TEXT | _vision(768, 12, 12, 32) | {"width": 512}),
    "ViT-L/14": Size(_LARGE_TEXT | _vision(1024, 24, 16, 14) | {"width": 768}),
    # As many weights as pi0 has: 38 layers of 12 x 2560 x 2560 each.
    "3 billion": Size(_TEXT | _vision(2560, 38, 20, 14) | {"width": 512}),
}


def of_architecture(name: str) -> Source:
    """Return an architecture's default configuration with random weights, as the tabletop would train it."""
    return _source(name, module_of(name).Config(), 96)


def of_size(name: str) -> Source:
    """Return a policy of SIZES; its weights are made on the current default device."""
    made_of = SIZES[name]
    return _source("clip", module_of("clip").Config(**made_of.model), made_of.pixels)


def _source(architecture: str, config: Any, pixels: int) -> Source:
    torch.manual_seed(0)
    sizes = Sizes(
        cameras=1, image_size=pixels, context_length=77, vocabulary=49408, state=4, horizon=8, action=4
    )
    model = module_of(architecture).Model(config, sizes)
    for parameter in model.parameters():  # tables that start at zero would make every command alike
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    random = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    stochastic = bool(getattr(model, "stochastic", False))
    return Source(
        model=Exportable(model),
        eager=eager(architecture, model, sizes),
        name=architecture,
        cameras=(Camera(name="front", width=pixels, height=pixels),),
        action=action_space(ContinuousSpace(**_vector(0.03), horizon=8, control_hz=10.0), model),
        state=Vector(**_vector(1.0)),
        tokenizer=Tokenizer(file="tokenizer.json", context_length=77, pad_id=49407),
        tokenizer_file=TOKENIZER,
        noise=(8, 4) if stochastic else None,
        extras=dict(getattr(model, "extras", {})),
        architecture=architecture,
        example=Observation({"front": random}, "pick up the red block", (0.0, 0.1, -0.1, 0.5)),
    )


def _vector(bound: float) -> dict[str, Any]:
    names = ("x", "y", "z", "opening")
    return {
        "dimensions": tuple(Dimension(name=n, unit="m", low=-bound, high=bound) for n in names),
        "normalisation": "bounds",
        "statistics": Statistics(low=(-bound,) * 4, high=(bound,) * 4),
    }


def in_process(
    source: Source, device: str, precision: Precision = "float32", *, tf32: bool = False, graphs: bool = True
) -> Policy:
    """Return a policy that runs the eager module itself, without an archive."""
    flat, layout = flattened(source)
    flat = flat.to(device)
    module: Any = Lowered(flat, device) if precision == "bfloat16" else flat
    spec = PolicySpec(
        name=source.name,
        version="random",
        architecture=source.architecture,
        cameras=source.cameras,
        tokenizer=source.tokenizer,
        state=source.state,
        action=source.action,
        safety=source.safety,
        noise=source.noise,
        artifact=ArtifactSpec(
            file="",
            command=layout.command,
            inputs=layout.inputs,
            buckets=BUCKETS,
            outputs=tuple(sorted({"actions", *source.extras})),
            extras=source.extras,
            precision=precision,
            tf32=tf32,
        ),
        example=Example(images={}, command="go", state=(), seed=0, actions=()),
        provenance={},
    )
    artifact = Artifact(module, spec, prepare(device, tf32=tf32), graphs=graphs)
    return Policy(spec, source.command_tokenizer(), artifact, threads=8)
