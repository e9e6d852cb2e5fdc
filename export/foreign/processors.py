"""LeRobot's processors: what stands between a robot's numbers and the policy's, and its statistics."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from torch import Tensor

from export.errors import ExportError
from export.foreign.tensors import read_tensors
from vla_runtime.spec import Statistics
from vla_runtime.vectors import Normalisation

PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"
# Steps that move tensors and change no value.
NEUTRAL = {"to_batch_processor", "device_processor"}
# Statistics that each of LeRobot's modes needs, and the rule that it is here.
MODES: dict[str, tuple[Normalisation, tuple[str, str]]] = {
    "MEAN_STD": ("mean_std", ("mean", "std")),
    "MIN_MAX": ("bounds", ("min", "max")),
    "QUANTILES": ("quantiles", ("q01", "q99")),
    "QUANTILE10": ("bounds", ("q10", "q90")),
}
# Width that a constant dimension of an action gets instead of 0: no float32 shows it.
NOTHING = 1e-12
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One step of a processor."""

    name: str
    config: dict[str, Any]
    # Its statistics by `<feature>.<statistic>`.
    state: dict[str, Tensor]


class Entry(msgspec.Struct):
    """A step as its file has it; `class` is of a step that no library registered."""

    registry_name: str | None = None
    class_: str | None = msgspec.field(default=None, name="class")
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    state_file: str | None = None


class Pipeline(msgspec.Struct):
    """A processor's file."""

    steps: list[Entry]


@dataclass(frozen=True)
class Rule:
    """How a feature is normalised: what a `Vector` says of it."""

    normalisation: Normalisation
    statistics: Statistics
    epsilon: float = 0.0


def read_processor(path: Path, known: set[str]) -> dict[str, Step]:
    """Return the steps of a processor by their name.

    Raises:
        ExportError: a step is of a kind that is not known here, or comes twice, or a file is damaged.
    """
    steps: dict[str, Step] = {}
    for entry in converted(path, read_json(path), Pipeline).steps:
        name = entry.registry_name or entry.class_ or "without a name"
        if name not in known | NEUTRAL:
            raise ExportError(
                f"{path} has a step {name!r}, and what it does to a request is not known here; "
                f"known are: {', '.join(sorted(known | NEUTRAL))}"
            )
        if name in steps:
            raise ExportError(f"{path} has the step {name!r} twice")
        state = read_tensors(path.parent / Path(entry.state_file).name) if entry.state_file else {}
        steps[name] = Step(name, entry.config, state)
    return steps


def converted(path: Path, found: Any, kind: type[T]) -> T:
    """Return a part of a file's JSON as what it must be.

    Raises:
        ExportError: it is something else; the message says where.
    """
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise ExportError(f"{path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ExportError: there is no such file, or it holds no object.
    """
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ExportError(f"{path} is missing") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ExportError(f"{path} holds no object")
    return found


def rule(step: Step, feature: str, kind: str, width: int, *, action: bool) -> Rule:
    """Return how a step normalises a feature of a kind (`STATE`, `VISUAL`, `ACTION`).

    Raises:
        ExportError: it has no modes, or an unknown one, or its statistics are missing or of another width.
    """
    modes = step.config.get("norm_map")
    if not modes or not isinstance(modes, dict):
        raise ExportError(f"{step.name} has no norm_map, so nothing says how {feature} is normalised")
    mode = modes.get(kind, "IDENTITY")  # as LeRobot has it
    if mode == "IDENTITY":
        return Rule("identity", Statistics())
    if mode not in MODES:
        raise ExportError(
            f"{feature} is normalised by {mode}, which is not known here: IDENTITY, {', '.join(MODES)} are"
        )
    normalisation, names = MODES[mode]
    first, second = (statistic(step, feature, name, width) for name in names)
    if first is None or second is None:
        raise ExportError(
            f"{feature} is normalised by {mode}, and {step.name} has no {' and '.join(names)} of it"
        )
    epsilon = step.config.get("eps", 1e-8)
    if not isinstance(epsilon, float | int) or not epsilon >= 0:
        raise ExportError(f"{step.name}: eps must be a number, 0 at least, got {epsilon!r}")
    if normalisation == "mean_std":
        # LeRobot adds its epsilon where it divides, and not on the way back.
        std = [value or NOTHING for value in second] if action else second
        return Rule("mean_std", Statistics(mean=first, std=tuple(std)), 0.0 if action else epsilon)
    constant = NOTHING if action else epsilon
    pairs = zip(first, second, strict=True)
    second = tuple(low + constant if low == high else high for low, high in pairs)
    if normalisation == "quantiles":
        return Rule("quantiles", Statistics(q01=first, q99=second))
    return Rule("bounds", Statistics(low=first, high=second))


def statistic(step: Step, feature: str, name: str, width: int) -> tuple[float, ...] | None:
    """Return one statistic of a feature, None where there is none.

    Raises:
        ExportError: it has another width than the feature.
    """
    found = step.state.get(f"{feature}.{name}")
    if found is None:
        return None
    values = tuple(found.flatten().tolist())
    if len(values) != width:
        raise ExportError(
            f"{step.name} has {len(values)} values {feature}.{name}, and config.json says {width}"
        )
    return values
