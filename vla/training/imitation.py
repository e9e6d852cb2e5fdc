"""Imitation learning: regression of action chunks on demonstrations, under counterfactual commands.

Every frame is trained with several commands, each with the expert's answer to it: without these a policy
guesses its goal from the picture and ignores the words.
"""

import hashlib
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import torch
from torch.optim import AdamW
from tqdm import tqdm

from vla import checkpoint, provenance
from vla.data.formats import is_recorded
from vla.data.mixture import Mixture, load
from vla.data.recipe import read_recipe
from vla.models import AnyModel, Batch, build, module_of
from vla.models.grounded import Model as Grounded
from vla.tabletop.commands import parse
from vla.tabletop.demonstrations import Demonstrations
from vla.tabletop.texts import PIECES
from vla.training import heads, lora, reading, recorded, workbench
from vla.training.batches import Batches
from vla.training.curve import draw
from vla.training.distillation import Teacher
from vla.training.progress import Point, Progress, plain, restore, store
from vla.training.recorded import RecordedBatches
from vla.training.schedule import one_cycle
from vla.training.settings import Settings
from vla.training.statistics import Statistics, Summary
from vla.training.workbench import WorkbenchBatches
from vla_runtime import spec

AnyBatches: TypeAlias = Batches | RecordedBatches | WorkbenchBatches

# Frames, and commands of each, in a validation during the run and in the one after it.
VALIDATION, LAST_VALIDATION = (256, 2), (1024, 4)
# By how much a limit of confidence may separate less than the best one.
NEARLY = 0.005
# Sent in place of an action that is not finite: stand still, fingers closed, so that a held block stays held.
HOLD_ACTION = (0.0, 0.0, 0.0, 1.0)
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
        ValueError: no architecture has this name.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    batches = _batches(settings)
    config = batches.config
    model = _model(settings, config)
    config = msgspec.structs.replace(config, model=asdict(model.config))
    batches = replace(batches, config=config)
    progress = _optimise(settings, batches, model, stop_after)
    if stop_after is None:
        begin_s = time.monotonic()
        model.cpu()
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        if settings.lora:
            lora.merge(model)
        elif isinstance(batches, Batches) and isinstance(model, Grounded) and not settings.minutes:
            heads.train(batches, model, round(settings.heads * settings.steps))
            reading.train(batches, model, round(settings.reading * settings.steps))
        wall_s = progress.wall_s + time.monotonic() - begin_s
        _finish(settings, batches, model, msgspec.structs.replace(progress, wall_s=wall_s), trained)
    return config


def _batches(settings: Settings) -> AnyBatches:
    """Return what draws batches of the data, whatever it is of."""
    recorded_data, at_workbench = (
        is_recorded(settings.data),
        (settings.data / workbench.DESCRIPTION).is_file(),
    )
    if settings.text_tokens and (recorded_data or at_workbench):
        raise ValueError("text_tokens is for demonstrations of the tabletop: no other data has texts")
    if recorded_data:
        return _recorded(settings)
    if at_workbench:
        return _at_workbench(settings)
    return demonstrated(settings)


def _model(settings: Settings, config: checkpoint.Config) -> AnyModel:
    """Return the model that the run begins with, on the run's device."""
    model = build(settings.architecture, config.model, config.sizes())
    if settings.start is not None:
        checkpoint.load_weights(model, settings.start / checkpoint.WEIGHTS)
    if settings.lora:
        lora.adapt(model, settings.lora)
    return model.to(settings.device)


def demonstrated(settings: Settings) -> Batches:
    """Return what draws batches of the tabletop's demonstrations."""
    dataset = Demonstrations.load(settings.data)
    return batches_of(settings, dataset, describe(settings, dataset))


def _at_workbench(settings: Settings) -> WorkbenchBatches:
    """Return what draws batches of the workbench's demonstrations."""
    dataset = workbench.Demonstrations.load(settings.data)
    config = describe(settings, dataset)
    config = msgspec.structs.replace(config, model=config.model | workbench.model_values())
    return WorkbenchBatches(dataset, config, settings.seed, settings.validation_share)


def _recorded(settings: Settings) -> RecordedBatches:
    """Return what draws batches of recorded data; every picture is read first."""
    options, recipe = settings.recorded, read_recipe(settings.data)
    mixture = Mixture(
        recipe,
        load(recipe, options.image_size, lambda source: tqdm(source, unit="episode", desc="reading")),
        horizon=options.horizon,
        seed=settings.seed,
        normalisation=settings.normalisation,
        held_out=settings.validation_share,
        failed=options.failed,
        mirror=options.mirror,
    )
    return RecordedBatches(
        mixture, recorded.describe(settings, mixture, model_values(settings)), settings.seed
    )


def batches_of(settings: Settings, dataset: Demonstrations, config: checkpoint.Config) -> Batches:
    """Return what draws the run's batches."""
    excluded = tuple(parse(goal) for goal in settings.excluded_goals)
    return Batches(
        dataset,
        config,
        settings.seed,
        settings.validation_share,
        settings.counterfactual,
        excluded,
        settings.sentences,
    )


def describe(settings: Settings, dataset: Demonstrations | workbench.Demonstrations) -> checkpoint.Config:
    """Return what the policy will be, with the statistics of the data set's labels and states."""
    about, statistics = dataset.description, Statistics.compute(dataset)
    tokenizer = checkpoint.tokenizer_of(settings.architecture)
    length = settings.context_length or tokenizer.context_length
    state = _vector(about.state, statistics.state, settings)
    action = _vector(about.action, statistics.action, settings)
    return checkpoint.Config(
        name=settings.architecture,
        architecture=settings.architecture,
        model=model_values(settings),
        cameras=(spec.Camera(name=about.camera, width=about.image_size, height=about.image_size),),
        tokenizer=msgspec.structs.replace(tokenizer, context_length=length),
        state=spec.Vector(**state),
        action=spec.ContinuousSpace(**action, horizon=about.horizon, control_hz=about.control_hz),
        safety=spec.Safety(mode="clamp", hold_action=HOLD_ACTION),
        training=_written(settings),
    )


def model_values(settings: Settings) -> dict[str, Any]:
    """Return the values of the architecture's own `Config`."""
    preset = module_of(settings.architecture).Config
    preset = preset() if settings.preset == "default" else getattr(preset, settings.preset)()
    values = asdict(preset)
    if settings.pretrained:
        values["checkpoint"] = str(settings.pretrained)
    if settings.max_delay:
        values["max_delay"] = settings.max_delay
    if settings.text_tokens:
        values |= {"text_tokens": settings.text_tokens, "pieces": PIECES}
    return values


def _written(settings: Settings) -> dict[str, Any]:
    """Return the settings of a run; those of recorded data where there is any."""
    values = plain(settings)
    if not is_recorded(settings.data):
        del values["recorded"]
    return values


def _vector(dimensions: tuple[spec.Dimension, ...], summary: Summary, settings: Settings) -> dict[str, Any]:
    return {
        "dimensions": dimensions,
        "normalisation": settings.normalisation,
        "statistics": spec.Statistics(mean=summary.mean, std=summary.std, q01=summary.q01, q99=summary.q99),
    }


def _optimise(settings: Settings, batches: AnyBatches, model: AnyModel, stop_after: int | None) -> Progress:
    """Run until the steps or the time are spent; saves the run at every validation."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = AdamW(trained, weight_decay=settings.weight_decay)
    progress = Progress(settings=_comparable(settings))
    if settings.resume:
        progress = restore(settings.out, progress.settings, model, optimiser)
    teacher = None
    if settings.teacher:
        teacher = Teacher(settings.teacher, batches.config, settings.teacher_share, settings.device)
    begin_s, losses, step = time.monotonic() - progress.wall_s, [], progress.step
    share = _share(settings, step, progress.wall_s)
    with tqdm(initial=step, total=None if settings.minutes else settings.steps, unit="step") as bar:
        while share < 1 and step != stop_after:
            rate = one_cycle(share) * settings.learning_rate
            losses.append(_step(settings, _draw(settings, batches, teacher, step), model, optimiser, rate))
            step += 1
            bar.update()
            wall_s = time.monotonic() - begin_s
            share = _share(settings, step, wall_s)
            if step % settings.validate_every == 0 or share == 1:
                error = validate(batches, model, settings.device, *VALIDATION)
                point = Point(step=step, loss=sum(losses) / len(losses), learning_rate=rate, error=error)
                losses = []
                progress = progress.extended(point, wall_s)
                store(settings.out, progress, model, optimiser)
                bar.set_postfix(loss=f"{point.loss:.4f}", rate=f"{rate:.1e}", error=_short(error))
    return progress


def _share(settings: Settings, step: int, wall_s: float) -> float:
    """Return how much of the run is done, in [0, 1]: of its time where that is limited, else of its steps."""
    if settings.minutes:
        return min(1.0, wall_s / (60 * settings.minutes))
    return step / settings.steps


def _draw(settings: Settings, batches: AnyBatches, teacher: Teacher | None, step: int) -> Batch:
    """Draw a step's batch and seed what is random in it: a step depends on its number and the weights."""
    torch.manual_seed(settings.seed * 1_000_003 + step)
    batch = _to(batches.train(step, settings.batch, settings.commands), settings.device)
    return teacher.mix(batch) if teacher else batch


def _step(settings: Settings, batch: Batch, model: AnyModel, optimiser: AdamW, rate: float) -> float:
    """Make one optimiser step at a learning rate; returns the loss."""
    model.train()
    loss = torch.stack(list(model.loss(batch).values())).sum()
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimiser.step()
    return loss.item()


def validate(
    batches: AnyBatches, model: AnyModel, device: str, frames: int, commands: int
) -> tuple[float, ...]:
    """Return the mean absolute error on held-out episodes, with commands in held-out phrasings.

    Returns:
        one number a dimension, mean over the chunk [action unit]
    """
    return action_error(batches, model, device, batches.validation(frames, commands))


@torch.inference_mode()
def action_error(batches: AnyBatches, model: AnyModel, device: str, batch: Batch) -> tuple[float, ...]:
    """Return the mean absolute error on a batch: one number a dimension [action unit]."""
    model.eval()
    batch = _to(batch, device)
    # Drawn as the server draws it: what a stochastic model answers is not what it answers to zeros.
    noise = torch.randn(batch.actions.shape, generator=torch.Generator().manual_seed(0)).to(device)
    missed = (_answered(model, batch, noise, "actions") - batch.actions).abs()
    if batch.valid is None:
        error = missed.mean((0, 1))
    else:
        error = (missed * batch.valid).sum((0, 1)) / batch.valid.sum((0, 1)).clamp_min(1)
    return tuple((error.cpu() * torch.from_numpy(batches.space.scale)).tolist())


def _answered(model: AnyModel, batch: Batch, noise: torch.Tensor, output: str) -> torch.Tensor:
    """Return one output of `act` for each command of a batch, computed 256 at a time."""
    command, mask = model.encode_command(batch.input_ids, batch.attention_mask)
    answers = []
    for rows in torch.arange(len(command), device=command.device).split(256):
        frame = rows // batch.commands_per_frame
        answer = model.act(batch.images[frame], command[rows], mask[rows], batch.state[frame], noise[rows])
        answers.append(answer[output])
    return torch.cat(answers)


def _finish(
    settings: Settings, batches: AnyBatches, model: AnyModel, progress: Progress, trained: int
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
        "trained_parameters": trained,
        "torch": str(torch.__version__),
    }
    checkpoint.save(out, config, model, example, about, half=settings.half)
    _, model = checkpoint.load(out)
    error = validate(batches, model, "cpu", *LAST_VALIDATION)
    dimensions = batches.space.dimensions
    about["validation_error"] = {
        f"{dimension.name} [{dimension.unit}]": value
        for dimension, value in zip(dimensions, error, strict=True)
    }
    checkpoint.save(out, config, model, example, about, half=settings.half)
    names, units = config.action.names, [dimension.unit for dimension in dimensions]
    draw(out / "curve.png", progress.points, names, units)
    print(f"{out}: {about['parameters']} parameters, {about['wall_s']} s, validation error {_short(error)}")


@torch.inference_mode()
def _abstaining(batches: Batches, model: AnyModel, safety: spec.Safety) -> spec.Safety:
    """Return the safety with the least confidence that is acted on.

    On frames that training did not see, the share acted on of what can be done, less that of what can't
    (Youden 1950), is largest or nearly so from there. It is the lowest such limit: commands that are said as
    no training sentence is are read with less confidence.
    """
    batch = batches.calibration(*LAST_VALIDATION)
    confidence = _answered(model.eval(), batch, torch.zeros_like(batch.actions), "confidence")
    acts = batch.possible & batch.per_command(batch.shown)
    limits = torch.arange(1, 100) / 100
    acted = confidence[:, None] >= limits
    gap = acted[acts].float().mean(0) - acted[~acts].float().mean(0)
    limit = round(float(limits[gap >= gap.max() - NEARLY][0]), 2)
    return msgspec.structs.replace(safety, min_confidence=limit, hold_keeps=KEPT)


def _digest(data: Path) -> str:
    """Return the SHA-256 of what was trained on: of a folder, or of a mixture's file and its folders."""
    if data.is_dir():
        return provenance.digest(data)
    total = hashlib.sha256(data.read_bytes())
    for each in read_recipe(data).datasets:
        total.update(provenance.digest(Path(each.path)).encode())
    return total.hexdigest()


def _comparable(settings: Settings) -> dict[str, Any]:
    """Return the settings that a resumed run must share."""
    free = ("out", "resume", "threads", "device", "half")
    return {name: value for name, value in _written(settings).items() if name not in free}


def _to(batch: Batch, device: str) -> Batch:
    moved = {name: part.to(device) for name, part in batch._asdict().items() if part is not None}
    return batch._replace(**moved)


def _short(error: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}" for value in error)
