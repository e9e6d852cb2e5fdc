"""Our own checkpoints as sources: a folder that `vla.training` wrote."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from export.source import Observation, Source
from vla import checkpoint
from vla_runtime.spec import ActionSpace, BinnedSpace, ContinuousSpace, load


class Native(nn.Module):
    """A model of `vla.models`, whose pictures are one tensor, as an `ExportableModel`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.eval()

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """See `vla.models`."""
        command, command_mask = self.model.encode_command(input_ids, attention_mask)
        return {"command": command, "command_mask": command_mask}

    def act(
        self, images: dict[str, Tensor], command: dict[str, Tensor], state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """See `vla.models`."""
        pictures = torch.stack(list(images.values()), dim=1)
        return self.model.act(pictures, command["command"], command["command_mask"], state, noise)


def make(folder: Path) -> Source:
    """Read a checkpoint.

    Raises:
        SpecError: a file is missing, breaks a rule, or the weights do not fit the architecture.
    """
    config, model = checkpoint.load(folder)
    extras = dict(getattr(model, "extras", {}))
    stochastic = bool(getattr(model, "stochastic", False))
    return Source(
        model=Native(model),
        name=config.name,
        cameras=config.cameras,
        action=action_space(config.action, model),
        example=_example(folder, config),
        state=config.state,
        tokenizer=config.tokenizer,
        tokenizer_file=checkpoint.TOKENIZER_FOLDER / config.tokenizer.file,
        noise=(config.action.horizon, config.action.width) if stochastic else None,
        safety=config.safety,
        extras=extras,
        architecture=config.architecture,
        provenance=_provenance(folder),
    )


def action_space(declared: ActionSpace, model: nn.Module) -> ActionSpace:
    """Return the action space of a model: binned where it chooses among bins, as `rt2` does."""
    config: Any = model.config
    bins = getattr(config, "bins", None)
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
