"""What is measured of a checkpoint without the simulator: its validation errors."""

from pathlib import Path
from typing import Literal

import torch

from vla import checkpoint
from vla.models import Batch
from vla.tabletop.commands import parse
from vla.tabletop.demonstrations import Demonstrations
from vla.training.batches import Batches
from vla.training.validation import action_error
from vla_runtime.preprocessing import normalise_pictures

# held_out: the trained goals in held-out phrasings; excluded: the goals that training excluded;
# shuffled: commanded another goal than the actions pursue; blank: a grey picture.
Probe = Literal["held_out", "excluded", "shuffled", "blank"]

# Frames, and commands of each, that the validation error is taken over.
FRAMES, COMMANDS = 512, 2
# Grey level of a blank picture.
GREY = 127


def validation_errors(folder: Path, data: Path) -> dict[Probe, tuple[float, ...]]:
    """Return a checkpoint's mean absolute error on held-out episodes, by probe.

    Returns:
        one number a dimension, mean over the chunk [action unit]; no `excluded` where training excluded none

    Raises:
        SpecError, DatasetError: the checkpoint or the data set is incomplete, or they do not fit.
    """
    config, model = checkpoint.load(folder)
    made = config.training
    excluded = tuple(parse(goal) for goal in made["excluded_goals"])
    batches = Batches(
        Demonstrations.load(data),
        config,
        made["seed"],
        made["validation_share"],
        made["counterfactual"],
        excluded,
    )
    plain = batches.validation(FRAMES, COMMANDS)
    probes: dict[Probe, Batch] = {
        "held_out": plain,
        "shuffled": batches.validation(FRAMES, COMMANDS, shuffled=True),
        "blank": plain._replace(images=_blank(plain, config)),
    }
    if excluded:
        probes["excluded"] = batches.validation(FRAMES, COMMANDS, excluded=True)
    return {probe: action_error(batches, model, "cpu", batch) for probe, batch in probes.items()}


def _blank(batch: Batch, config: checkpoint.Config) -> torch.Tensor:
    return normalise_pictures(torch.full(batch.images.shape, GREY, dtype=torch.uint8), config.cameras)
