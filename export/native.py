"""Our own checkpoints as sources: a folder that `vla.training` wrote."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

import vla
from export.errors import ExportError
from export.foreign.facts import Facts, max_delay
from export.source import Eager, Observation, Source
from vla import checkpoint
from vla.exportable import Exportable
from vla.models import AnyModel, build, flow
from vla_runtime.spec import ActionSpace, BinnedSpace, ContinuousSpace, load


def make(folder: Path, facts: Facts | None = None) -> Source:
    """Read a checkpoint; `facts` may say how a flow that was not trained for delays is guided.

    Raises:
        SpecError: a file is missing, breaks a rule, or the weights do not fit the architecture.
        ExportError: guidance of a model that takes none.
    """
    config, model = checkpoint.load(folder)
    if facts and (facts.guidance or facts.max_delay is not None):
        model = _guided(model, max_delay(facts, config.action.horizon), facts.guidance)
    return source_of(config, model, _example(folder, config), _provenance(folder))


def _guided(model: AnyModel, delay: int, kind: str | None) -> AnyModel:
    """Return a flow that is drawn towards as many given actions as pass until an answer is there."""
    if not isinstance(model, flow.Model) or model.max_delay:
        reason = "was trained for a delay" if model.max_delay else "is no flow"
        raise ExportError(f"--guidance {kind} is for a flow that was trained without a delay: this {reason}")
    values = asdict(model.config) | {"max_delay": delay, "guidance": kind}
    guided = build("flow", values, model.sizes)
    guided.load_state_dict(model.state_dict())
    return guided.eval()


def source_of(
    config: checkpoint.Config, model: AnyModel, example: Observation, provenance: dict[str, Any]
) -> Source:
    """Return a model of `vla.models` as a source."""
    return Source(
        model=Exportable(model),
        name=config.name,
        cameras=config.cameras,
        action=_action_space(config.action, model),
        example=example,
        state=config.state,
        tokenizer=config.tokenizer,
        tokenizer_file=config.tokenizer_folder / config.tokenizer.file,
        noise=(config.action.horizon, config.action.width) if model.stochastic else None,
        max_delay=model.max_delay,
        safety=config.safety,
        extras=dict(model.extras),
        architecture=config.architecture,
        eager=_eager(config, model),
        provenance=provenance,
    )


def _eager(config: checkpoint.Config, model: AnyModel) -> Eager:
    """Return how a worker builds the model."""
    sizes = asdict(config.sizes())
    values = {"architecture": config.architecture, "config": asdict(model.config), "sizes": sizes}
    return Eager(Path(vla.__file__).parent, "vla.exportable:build", values)


def _action_space(declared: ActionSpace, model: AnyModel) -> ActionSpace:
    """Return the action space of a model: binned where it chooses among bins, as `rt2` does."""
    bins = getattr(model.config, "bins", None)
    if type(declared) is not ContinuousSpace or bins is None:
        return declared
    return BinnedSpace(**msgspec.structs.asdict(declared), bins=int(bins))


def _example(folder: Path, config: checkpoint.Config) -> Observation:
    example = load(folder / checkpoint.EXAMPLE, checkpoint.Example)
    images = {
        camera.name: np.array(Image.open(folder / example.images[camera.name]).convert("RGB"))
        for camera in config.cameras
    }
    return Observation(images, example.command, example.state)


def _provenance(folder: Path) -> dict[str, Any]:
    trained = folder / checkpoint.PROVENANCE
    return {
        "checkpoint_sha256": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in (checkpoint.CONFIG, checkpoint.WEIGHTS)
        },
        "training": msgspec.json.decode(trained.read_bytes()) if trained.is_file() else None,
    }
