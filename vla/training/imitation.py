"""Imitation learning: regression of action chunks on demonstrations, under counterfactual commands.

Every frame is trained with several commands, each with the expert's answer to it: without these a policy
guesses its goal from the picture and ignores the words.
"""

import hashlib
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from vla import checkpoint, provenance
from vla.data.recipe import read_recipe
from vla.models import AnyModel
from vla.models.grounded import Model as Grounded
from vla.training import heads, lora, reading
from vla.training.batches import Batches
from vla.training.choices import choices
from vla.training.curve import draw
from vla.training.loop import optimise
from vla.training.progress import Progress
from vla.training.ranks import joined
from vla.training.settings import Settings
from vla.training.setup import AnyBatches, batches_for, model_for
from vla.training.validation import VALIDATION, answered, measure_of, short
from vla_runtime import spec

# Frames, and commands of each, in the validation after the run.
LAST_VALIDATION = (1024, 4)
# By how much a limit of confidence may separate less than the best one.
NEARLY = 0.005
# What stays as the policy has it where it abstains: demonstrations show the gripper left as it is.
KEPT = ("gripper",)


def train(settings: Settings, stop_after: int | None = None) -> checkpoint.Config:
    """Train, and write the checkpoint and its training curve into `settings.out`.

    Args:
        settings: the run
        stop_after: end after so many steps, a multiple of `validate_every`, as if interrupted: no checkpoint

    Raises:
        SpecError: the data set does not fit the policy, or the run to resume has other settings.
        DatasetError: the data set is incomplete.
        ValueError: no architecture has this name, or a batch can't be divided among the processes.
    """
    with joined(settings.device) as ranks:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        batches = batches_for(settings, quiet=not ranks.first)
        model = model_for(settings, batches.config)
        config = msgspec.structs.replace(batches.config, model=asdict(model.config))
        batches = replace(batches, config=config)
        measure = measure_of(batches, *VALIDATION)
        progress, cost, model = optimise(
            settings, batches, model, ranks, measure=measure, stop_after=stop_after
        )
        if stop_after is None and ranks.first:
            _complete(settings, batches, model, progress, cost | {"processes": ranks.count})
    return config


def _complete(
    settings: Settings, batches: AnyBatches, model: AnyModel, progress: Progress, cost: dict[str, Any]
) -> None:
    """Take the stages that follow the loop, and write the checkpoint."""
    begin_s = time.monotonic()
    model.cpu()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if settings.lora:
        lora.merge(model)
    elif isinstance(batches, Batches) and isinstance(model, Grounded) and not settings.minutes:
        heads.train(batches, model, round(settings.heads * settings.steps))
        reading.train(batches, model, round(settings.reading * settings.steps))
    wall_s = progress.wall_s + time.monotonic() - begin_s
    made = {"trained_parameters": trained, **cost}
    _finish(settings, batches, model, msgspec.structs.replace(progress, wall_s=wall_s), made)


def _finish(
    settings: Settings, batches: AnyBatches, model: AnyModel, progress: Progress, made: dict[str, Any]
) -> None:
    """Write the checkpoint, measure it as it was written, draw the curve."""
    config, example, out = batches.config, batches.example(), settings.out
    last = progress.points[-1]
    if isinstance(batches, Batches) and batches.selective:
        config = msgspec.structs.replace(config, safety=_abstaining(batches, model, config.safety))
    about = {
        "command_line": settings.command_line,
        "seed": settings.seed,
        "commit": provenance.commit(),
        "dataset_sha256": _digest(settings.data),
        "frames": [len(part) for part in batches.frames],
        "steps": last.step,
        "wall_s": round(progress.wall_s, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **made,
        "torch": str(torch.__version__),
    }
    checkpoint.save(out, config, model, example, about, half=settings.half)
    _, model = checkpoint.load(out)
    names, units, missed = measure_of(batches, *LAST_VALIDATION)
    error = missed(model.to(settings.device), settings.device)
    about["validation_error"] = {
        f"{name} [{unit}]": value for name, unit, value in zip(names, units, error, strict=True)
    }
    if found := choices(model, batches.validation(*LAST_VALIDATION), settings.device):
        about["choices"] = found
    checkpoint.save(out, config, model, example, about, half=settings.half)
    draw(out / "curve.png", progress.points, names, units)
    print(f"{out}: {about['parameters']} parameters, {about['wall_s']} s, validation error {short(error)}")


@torch.inference_mode()
def _abstaining(batches: Batches, model: AnyModel, safety: spec.Safety) -> spec.Safety:
    """Return the safety with the least confidence that is acted on, by frames that training did not see."""
    batch = batches.calibration(*LAST_VALIDATION)
    confidence = answered(model.eval(), batch, torch.zeros_like(batch.actions), "confidence")
    limit = least_confidence(confidence, batch.possible & batch.per_command(batch.shown))
    return msgspec.structs.replace(safety, min_confidence=limit, hold_keeps=KEPT)


def least_confidence(confidence: torch.Tensor, acts: torch.Tensor) -> float:
    """Return the least confidence that is to be acted on.

    It is in the middle of those by which the share acted on of what can be done, less that of what can't
    (Youden 1950), is largest or nearly so: as far from what is sure to be done as from what is sure not to.

    Args:
        confidence: float32 [N], of N answers
        acts: bool [N], whether there was something to do
    """
    limits = torch.arange(1, 100) / 100
    acted = confidence[:, None] >= limits
    gap = acted[acts].float().mean(0) - acted[~acts].float().mean(0)
    nearly = limits[gap >= gap.max() - NEARLY]
    return round(float(nearly[len(nearly) // 2]), 2)


def _digest(data: Path) -> str:
    """Return the SHA-256 of what was trained on: of a folder, or of a mixture's file and its folders."""
    if data.is_dir():
        return provenance.digest(data)
    total = hashlib.sha256(data.read_bytes())
    for each in read_recipe(data).datasets:
        total.update(provenance.digest(Path(each.path)).encode())
    return total.hexdigest()
