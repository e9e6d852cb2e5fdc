"""What a folder from elsewhere does not say, and has to be told: names, limits, rate."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tyro

from export.errors import ExportError
from export.foreign.processors import read_json
from vla_runtime.spec import Dimension
from vla_runtime.vectors import Meaning, Part

# The unit of a dimension of which nobody says one.
UNIT = "dataset unit"


@dataclass(frozen=True)
class Facts:
    """What a policy made elsewhere does not say of itself; see docs/import.md."""

    # Which library wrote the folder; without it, a folder is one of our own checkpoints.
    origin: Annotated[Literal["lerobot", "openpi"] | None, tyro.conf.arg(name="from")] = None
    # JSON with the names of the dimensions, or the training dataset's meta/info.json.
    names: Path | None = None
    # Safety limits where the names file has none: the training data's range, widened at both ends by this
    # share of it. An action beyond is clamped, and the answer says so.
    margin: float | None = None
    # Rate at which the robot executes the actions [Hz], unless the names file says it.
    control_hz: float | None = None
    # The tokenizer.json of a policy that reads commands and comes without one: PaliGemma's for pi0 and pi0.5,
    # SmolVLM's for SmolVLA.
    tokenizer: Path | None = None
    # The config.json of a SmolVLA's vision-language model, where that is not the default one.
    vlm: Path | None = None
    # Whose numbers openpi's code makes the policy's of: aloha, aloha_sim, droid, droid_joint_position,
    # libero, libero_delta; docs/import.md says what each does.
    robot: str | None = None
    # Folder below openpi's `assets` with the statistics, where there are several.
    asset: str | None = None
    # Actions in a chunk of openpi's JAX checkpoint, which does not say it: its configuration's
    # action_horizon.
    horizon: int | None = None
    # Denoising steps of a diffusion or flow policy; as many as its config.json says by default.
    denoising_steps: int | None = None
    # For a flow that was not trained for real-time chunking: how its chunks are drawn towards the actions
    # that are executed until an answer is there. `vjp` needs a gradient: format pt2 or eager.
    guidance: Literal["identity", "vjp"] | None = None
    # Most such actions [steps], for `guidance`.
    max_delay: int | None = None
    # Name of the policy in answers and metrics; the policy's type by default.
    name: str | None = None


def max_delay(facts: Facts, horizon: int) -> int:
    """Return the most actions that a chunk of so many may begin with [steps]; 0 without guidance.

    Raises:
        ExportError: it was not told, or leaves nothing for the policy.
    """
    if facts.guidance is None:
        if facts.max_delay is not None:
            raise ExportError("--max-delay is of --guidance identity or vjp, which was not given")
        return 0
    if facts.max_delay is None or not 1 <= facts.max_delay < horizon:
        raise ExportError(
            f"--guidance {facts.guidance} needs --max-delay, the most steps that pass until an answer is "
            f"there: 1 to {horizon - 1}, got {facts.max_delay}"
        )
    return facts.max_delay


class Named(Part, frozen=True):
    """A dimension in a names file: a name, and what else is known of it; see `Dimension`."""

    name: str
    unit: str = UNIT
    low: float | None = None
    high: float | None = None
    meaning: Meaning | None = None
    state: str | None = None


class Names(Part, frozen=True):
    """A names file."""

    action: tuple[str | Named, ...]
    state: tuple[str | Named, ...] = ()
    control_hz: float | None = None


@dataclass(frozen=True)
class Feature:
    """A vector of the policy of which only its width and statistics are known."""

    # As the names file calls it: `state` or `action`.
    what: str
    width: int
    # The training data's range, None where no statistics say it.
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


def read_names(facts: Facts) -> Names:
    """Read the names file, in our form or as a LeRobot dataset's `meta/info.json`.

    Raises:
        ExportError: none was given, or it is neither.
    """
    if facts.names is None:
        raise ExportError(
            "the folder does not name the dimensions of its state and action: give --names FILE, the "
            "training dataset's meta/info.json or a file as docs/import.md shows"
        )
    found = read_json(facts.names)
    if "features" in found:
        return _of_dataset(found, facts.names)
    try:
        return msgspec.convert(found, Names)
    except msgspec.ValidationError as error:
        raise ExportError(f"{facts.names}: {error}; docs/import.md shows such a file") from error


def dimensions(names: Sequence[str | Named], feature: Feature, margin: float | None) -> tuple[Dimension, ...]:
    """Name the dimensions of a vector, and bound them.

    Raises:
        ExportError: there are more or fewer names than dimensions, or a limit is known from nowhere.
    """
    if len(names) != feature.width:
        raise ExportError(
            f"the names file has {len(names)} names for the {feature.width} dimensions of the {feature.what}"
        )
    given = [Named(name=name) if isinstance(name, str) else name for name in names]
    return tuple(_dimension(named, feature, place, margin) for place, named in enumerate(given))


def relative_to_state(
    action: Sequence[Dimension], places: Iterable[int], state: Sequence[str]
) -> tuple[Dimension, ...]:
    """Return an action's dimensions, with those marked that the policy gives as differences from the state.

    Args:
        action: the dimensions
        places: of them and of the state's dimensions that they are differences from
        state: the names of the state's dimensions

    Raises:
        ExportError: the names file contradicts it.
    """
    found = list(action)
    for place in places:
        dimension, measured = action[place], state[place]
        if dimension.meaning not in (None, "absolute") or dimension.state not in (None, measured):
            raise ExportError(
                f"{dimension.name} is an absolute target of {measured} for this robot, and the names file "
                f"calls it {dimension.meaning} of {dimension.state}"
            )
        found[place] = msgspec.structs.replace(dimension, meaning="absolute", state=measured, relative=True)
    return tuple(found)


def control_hz(facts: Facts, names: Names) -> float:
    """Return the rate at which actions are executed [Hz].

    Raises:
        ExportError: it was not told.
    """
    rate = names.control_hz if facts.control_hz is None else facts.control_hz
    if rate is None:
        raise ExportError("nothing says how often the robot executes an action: give --control-hz")
    if not 0 < rate < math.inf:
        raise ExportError(f"control_hz must be positive and finite, got {rate}")
    return rate


def _of_dataset(info: dict[str, Any], path: Path) -> Names:
    try:
        features = msgspec.convert(info["features"], dict[str, dict[str, Any]])
        rate = msgspec.convert(info.get("fps"), float | None)
    except msgspec.ValidationError as error:
        raise ExportError(f"{path} is not a dataset's meta/info.json: {error}") from error
    action, state = (_feature_names(features, key, path) for key in ("action", "observation.state"))
    if not action:
        raise ExportError(f"{path} has no names of the feature 'action'")
    return Names(action=action, state=state, control_hz=rate)


def _feature_names(features: dict[str, Any], key: str, path: Path) -> tuple[str, ...]:
    names = features.get(key, {}).get("names") or ()
    if isinstance(names, dict):  # {"motors": [...]}
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    if not all(isinstance(name, str) for name in names):
        raise ExportError(f"{path} has names of {key!r} that are no texts")
    return tuple(names)


def _dimension(named: Named, feature: Feature, place: int, margin: float | None) -> Dimension:
    low, high = named.low, named.high
    if low is None or high is None:
        if margin is None or feature.low is None or feature.high is None:
            raise ExportError(
                f"nothing says the limits of {named.name} of the {feature.what}: give `low` and `high` in "
                "the names file"
                + (", or --margin to take the training data's range" if feature.low is not None else "")
            )
        first, last = feature.low[place], feature.high[place]
        # A constant has no range of its own.
        reach = margin * (last - first) if last > first else max(margin, 1e-3) * max(abs(first), 1.0)
        low = first - reach if low is None else low
        high = last + reach if high is None else high
    return Dimension(
        name=named.name, unit=named.unit, low=low, high=high, meaning=named.meaning, state=named.state
    )
