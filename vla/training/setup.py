"""What a run begins with: its data as batches, what its policy will be, and the model."""

from dataclasses import asdict
from typing import Any, TypeAlias

import msgspec
from tqdm import tqdm

from vla import checkpoint
from vla.data.formats import is_recorded
from vla.data.mixture import Mixture, load
from vla.data.recipe import read_recipe
from vla.models import AnyModel, build, module_of
from vla.tabletop.commands import parse
from vla.tabletop.demonstrations import Demonstrations
from vla.tabletop.texts import PIECES
from vla.training import lora, recorded, workbench
from vla.training.batches import Batches
from vla.training.pretrained import tokenizer_values, tower_values
from vla.training.progress import plain
from vla.training.recorded import RecordedBatches
from vla.training.settings import Settings
from vla.training.statistics import Statistics, Summary
from vla.training.symbolic import SymbolicBatches, symbolic
from vla.training.workbench import WorkbenchBatches
from vla_runtime import spec

AnyBatches: TypeAlias = Batches | RecordedBatches | WorkbenchBatches

# Sent in place of an action that is not finite: stand still, fingers closed, so that a held block stays held.
HOLD_ACTION = (0.0, 0.0, 0.0, 1.0)


def batches_for(settings: Settings, *, quiet: bool = False) -> AnyBatches:
    """Return what draws batches of the data, whatever it is of; `quiet`: draws no progress bar."""
    recorded_data, at_workbench = (
        is_recorded(settings.data),
        (settings.data / workbench.DESCRIPTION).is_file(),
    )
    if settings.text_tokens and (recorded_data or at_workbench):
        raise ValueError("text_tokens is for demonstrations of the tabletop: no other data has texts")
    if settings.symbolic and (recorded_data or at_workbench):
        raise ValueError("symbolic is for demonstrations of the tabletop: no other data has these steps")
    if recorded_data:
        return _recorded(settings, quiet=quiet)
    if at_workbench:
        return _at_workbench(settings)
    return demonstrated(settings)


def demonstrated(settings: Settings) -> Batches:
    """Return what draws batches of the tabletop's demonstrations."""
    dataset = Demonstrations.load(settings.data)
    config = describe(settings, dataset)
    return batches_of(settings, dataset, symbolic(config) if settings.symbolic else config)


def _at_workbench(settings: Settings) -> WorkbenchBatches:
    """Return what draws batches of the workbench's demonstrations."""
    dataset = workbench.Demonstrations.load(settings.data)
    config = describe(settings, dataset)
    config = msgspec.structs.replace(config, model=config.model | workbench.model_values(settings.preset))
    return WorkbenchBatches(dataset, config, settings.seed, settings.validation_share)


def _recorded(settings: Settings, *, quiet: bool) -> RecordedBatches:
    """Return what draws batches of recorded data; every picture is read first."""
    options, recipe = settings.recorded, read_recipe(settings.data)
    mixture = Mixture(
        recipe,
        load(
            recipe,
            options.image_size,
            lambda source: tqdm(source, unit="episode", desc="reading", disable=quiet),
        ),
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
    kind = SymbolicBatches if isinstance(config.action, spec.DiscreteSpace) else Batches
    return kind(
        dataset,
        config,
        settings.seed,
        settings.validation_share,
        settings.counterfactual,
        excluded,
        settings.sentences,
    )


def model_for(settings: Settings, config: checkpoint.Config) -> AnyModel:
    """Return the model that the run begins with, on the run's device."""
    model = build(settings.architecture, config.model, config.sizes())
    if settings.start is not None:
        checkpoint.load_weights(model, settings.start / checkpoint.WEIGHTS)
    if settings.lora:
        lora.adapt(model, settings.lora)
    return model.to(settings.device)


def describe(settings: Settings, dataset: Demonstrations | workbench.Demonstrations) -> checkpoint.Config:
    """Return what the policy will be, with the statistics of the data set's labels and states."""
    about, statistics = dataset.description, Statistics.compute(dataset)
    state = _vector(about.state, statistics.state, settings)
    action = _vector(about.action, statistics.action, settings)
    return checkpoint.Config(
        name=settings.architecture,
        architecture=settings.architecture,
        model=model_values(settings),
        cameras=(spec.Camera(name=about.camera, width=about.image_size, height=about.image_size),),
        **tokenizer_values(settings.architecture, settings.pretrained, settings.context_length),
        state=spec.Vector(**state),
        action=spec.ContinuousSpace(**action, horizon=about.horizon, control_hz=about.control_hz),
        safety=spec.Safety(mode="clamp", hold_action=HOLD_ACTION),
        training=written(settings),
    )


def model_values(settings: Settings) -> dict[str, Any]:
    """Return the values of the architecture's own `Config`."""
    preset = module_of(settings.architecture).Config
    preset = preset() if settings.preset == "default" else getattr(preset, settings.preset)()
    values = asdict(preset)
    values = tower_values(settings.architecture, values, settings.pretrained)
    if settings.max_delay:
        values["max_delay"] = settings.max_delay
    if settings.text_tokens:
        values |= {"text_tokens": settings.text_tokens, "pieces": PIECES}
    return values


def written(settings: Settings) -> dict[str, Any]:
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
