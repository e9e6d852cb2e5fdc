"""openpi's folders as sources: JAX's `params` or what its converter to PyTorch writes, and `assets`.

    python -m export --from openpi FOLDER --robot droid --names names.json --tokenizer t.json --horizon 15

`normalised` gives a policy of one's own openpi's statistics.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from torch import nn

from export.errors import ExportError
from export.foreign import paligemma, pi0, robots
from export.foreign.commands import tokenizer
from export.foreign.facts import Facts, Feature, Named, control_hz, dimensions, max_delay, read_names
from export.foreign.folder import CONFIG, digests, soft_picture
from export.foreign.norm_stats import EPSILON, Key, entry, normalised
from export.foreign.openpi_jax import PARAMS, JaxWeights
from export.foreign.pi0.aloha import Aloha
from export.foreign.pi0.model import Config, Flow, pi
from export.foreign.processors import converted, read_json
from export.foreign.robots import Robot
from export.foreign.statistics import numbers
from export.foreign.tensors import INDEX, WEIGHTS, Safetensors
from export.foreign.weights import Weights, filled
from export.source import Eager, Observation, Source
from vla_runtime.spec import Camera, ContinuousSpace, Dimension, Precision, Statistics, Tokenizer, Vector

__all__ = ["make", "normalised"]

# What openpi's code has fixed: steps of the flow, waves of its time, tokens of a prompt.
STEPS, MIN_PERIOD, MAX_PERIOD = 10, 4e-3, 4.0
TOKENS = {"pi0": 48, "pi05": 200}
FIELDS = {"action_dim", "action_horizon", "paligemma_variant", "action_expert_variant", "precision"}
# Of the checkpoints that openpi trains in full, and not by LoRA.
LANGUAGE, EXPERT = "gemma_2b", "gemma_300m"


@dataclass(frozen=True)
class Folder:
    """A folder's files, and what was told of it."""

    path: Path
    facts: Facts
    robot: Robot
    kind: Literal["pi0", "pi05"]
    statistics: Path
    weights: Weights

    @property
    def shapes(self) -> paligemma.Shapes:
        """Shapes of the weights, by their keys in openpi's PyTorch port."""
        return self.weights.shapes

    @property
    def rule(self) -> Literal["mean_std", "quantiles"]:
        """How openpi normalises for this kind of policy."""
        return "quantiles" if self.kind == "pi05" else "mean_std"


def make(path: Path, facts: Facts, precision: Precision = "float32") -> Source:
    """Read the folder of a pi0 or pi0.5, its weights in the precision that it is to have.

    Raises:
        ExportError: it is not read, and the message says why.
        SpecError: what it says contradicts itself.
    """
    robot = robots.robot(facts.robot)
    weights = _weights(path)
    folder = Folder(path, facts, robot, paligemma.kind(weights.shapes), _statistics(path, facts), weights)
    if robot.angular:
        _check_angular(folder)
    config = _config(folder)
    state, action = _vectors(folder, config)
    words = _words(folder, config.vocabulary)
    own = paligemma.OF_PI05 if folder.kind == "pi05" else paligemma.OF_PI0
    table = paligemma.table(weights.shapes, own)
    loaded = filled(weights, table, lambda: pi(config), precision)
    model, eager = _on_robot(folder, loaded.model, config)
    return Source(
        model=model,
        lowered=precision == "bfloat16",
        name=facts.name or folder.kind,
        cameras=(cameras := _cameras(robot, config.vision.picture)),
        state=robots.robot_state(robot, state),
        action=robots.robot_action(robot, action),
        tokenizer=words,
        tokenizer_file=facts.tokenizer,
        example=Observation(
            {camera.name: soft_picture(camera) for camera in cameras},
            "pick up the cube",
            tuple(float((d.low + d.high) / 2) for d in state.dimensions),
        ),
        noise=(config.horizon, config.action),
        max_delay=max_delay(facts, config.horizon),
        architecture=f"openpi_{folder.kind}",
        eager=eager,
        provenance=_provenance(folder, config, len(loaded.ignored)),
    )


def _weights(path: Path) -> Weights:
    """Open the converted weights, and JAX's where there are no others."""
    ported = any((path / name).is_file() for name in (WEIGHTS, INDEX))
    return JaxWeights(path) if not ported and (path / PARAMS).is_dir() else Safetensors(path)


def _statistics(path: Path, facts: Facts) -> Path:
    """Return the file of the statistics."""
    found = {
        file.parent.relative_to(path / "assets").as_posix(): file
        for file in sorted((path / "assets").rglob("norm_stats.json"))
    }
    if not found:
        raise ExportError(
            f"{path} has no assets/<asset>/norm_stats.json, so no statistics of the training data"
        )
    if facts.asset is None and len(found) > 1:
        raise ExportError(
            f"{path / 'assets'} has statistics of: {', '.join(found)}; give --asset, one of them"
        )
    asset = facts.asset or next(iter(found))
    if asset not in found:
        raise ExportError(f"{path / 'assets'} has no statistics of {asset!r}; it has: {', '.join(found)}")
    return found[asset]


def _declared(folder: Folder) -> dict[str, Any]:
    """Return the fields of config.json; a JAX checkpoint has none, and says all but the horizon itself."""
    horizon, path = folder.facts.horizon, folder.path / CONFIG
    if isinstance(folder.weights, JaxWeights):
        if horizon is None or horizon < 1:
            raise ExportError(
                f"{folder.path} does not say how many actions a chunk has: give --horizon, the "
                f"action_horizon of its configuration in openpi; got {horizon}"
            )
        width = folder.shapes["action_in_proj.weight"][1]
        variants = {"paligemma_variant": LANGUAGE, "action_expert_variant": EXPERT}
        return {"action_dim": width, "action_horizon": horizon} | variants
    if horizon is not None:
        raise ExportError(f"--horizon is of JAX's checkpoints; {path} has action_horizon")
    return _read_config(path)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ExportError(
            f"{path} is missing: openpi's converter writes it; for one of its train_pytorch.py write it, "
            f"with {', '.join(sorted(FIELDS))}"
        )
    found = read_json(path)
    if found.keys() != FIELDS:
        raise ExportError(
            f"{path} must have the fields {', '.join(sorted(FIELDS))}; it has: {', '.join(found)}"
        )
    for name in ("paligemma_variant", "action_expert_variant"):
        if found[name] not in tuple(paligemma.VARIANTS):
            raise ExportError(f"{path}: {name} is {found[name]!r}; read are: {', '.join(paligemma.VARIANTS)}")
    return found


def _config(folder: Folder) -> Config:
    found, shapes = _declared(folder), folder.shapes
    steps = STEPS if folder.facts.denoising_steps is None else folder.facts.denoising_steps
    if steps < 1:
        raise ExportError(f"denoising steps must be 1 at least, got {steps}")
    fields: dict[str, Any] = {
        "vision": asdict(paligemma.tower(shapes, paligemma.edge(shapes))),
        "language": asdict(paligemma.language(shapes, found["paligemma_variant"])),
        "expert": asdict(paligemma.expert(shapes, found["action_expert_variant"])),
        "vocabulary": paligemma.vocabulary(shapes),
        "state": None if folder.kind == "pi05" else found["action_dim"],
        "action": found["action_dim"],
        "horizon": found["action_horizon"],
        "steps": steps,
        "min_period": MIN_PERIOD,
        "max_period": MAX_PERIOD,
        "counted_down": True,
        "guidance": folder.facts.guidance,
    }
    config = converted(folder.path / CONFIG, fields, Config)
    paligemma.check_pair(config.language, config.expert)
    return config


def _vectors(folder: Folder, config: Config) -> tuple[Vector, ContinuousSpace]:
    """Return state and action in the policy's numbers, with the robot's names and limits."""
    facts, robot, names = folder.facts, folder.robot, read_names(folder.facts)
    nothing: dict[str, Any] = {"normalisation": "identity", "statistics": Statistics()}
    state_range = action_range = None
    if seen := _range(folder, "state", robot.state):
        state_range = robots.state_range(robot, *seen)
    if state_range and (done := _range(folder, "actions", robot.action)):
        action_range = robots.action_range(robot, *done, state_range)
    state = Vector(
        dimensions=_named(names.state, "state", robot.state, state_range, facts.margin),
        padded_to=None if config.state is None else config.state,
        **nothing,
    )
    named = _named(names.action, "action", robot.action, action_range, facts.margin)
    action = ContinuousSpace(
        dimensions=robots.relative_to(robot, named, state),
        padded_to=config.action,
        horizon=config.horizon,
        control_hz=control_hz(facts, names),
        **nothing,
    )
    return (
        normalised(state, folder.statistics, "state", folder.rule),
        normalised(action, folder.statistics, "actions", folder.rule),
    )


def _named(
    names: tuple[str | Named, ...], what: str, width: int, found: robots.Range | None, margin: float | None
) -> tuple[Dimension, ...]:
    low, high = found or (None, None)
    return dimensions(names, Feature(what, width, low, high), margin)


def _range(folder: Folder, key: Key, width: int) -> robots.Range | None:
    """Return q01 and q99 of a vector's dimensions, None where the file does not have them all."""
    found = entry(folder.statistics, key)
    if found.get("q01") is None or found.get("q99") is None:
        return None
    low, high = (numbers(found, [name], folder.statistics)[:width] for name in ("q01", "q99"))
    return (low, high) if len(low) == len(high) == width else None


def _words(folder: Folder, rows: int) -> Tokenizer:
    """Return how commands are read, with so many entries of the word embedding."""
    prompted = folder.kind == "pi05" and folder.robot.prompt
    found = tokenizer(
        folder.facts.tokenizer,
        rows,
        length=TOKENS[folder.kind],
        side="right",
        template=paligemma.PROMPT if prompted else "{command}\n",
    )
    return msgspec.structs.replace(found, tidy=True)


def _on_robot(folder: Folder, policy: nn.Module, config: Config) -> tuple[nn.Module, Eager]:
    """Return the module between the robot's numbers, and how an `eager` archive builds it."""
    robot, package, arguments = folder.robot, Path(pi0.__file__).parent, asdict(config)
    if not robot.angular:
        return policy, Eager(package, "pi0.model:build", arguments)
    found = entry(folder.statistics, "state")
    mean, std = (numbers(found, [name], folder.statistics) for name in ("mean", "std"))
    parts: dict[str, Any] = {
        "signs": list(robots.signs(robot)),
        "grippers": list(robot.grippers),
        "mean": [mean[place] for place in robot.grippers],
        "std": [std[place] + EPSILON for place in robot.grippers],
    }
    assert isinstance(policy, Flow)
    return Aloha(policy, **parts).eval(), Eager(package, "pi0.aloha:build", parts | {"policy": arguments})


def _check_angular(folder: Folder) -> None:
    """Refuse what a robot whose grippers are angles to the policy can't be served with."""
    if folder.kind == "pi05":
        raise ExportError(
            "a pi0.5 reads ALOHA's grippers in its prompt, as angles that the robot does not report: not read"
        )
    for key in ("state", "actions"):
        known = len(numbers(entry(folder.statistics, key), ["mean"], folder.statistics))
        if known < folder.robot.state:
            raise ExportError(
                f"{folder.statistics} has {known} dimensions of {key!r}, and ALOHA has {folder.robot.state}"
            )


def _cameras(robot: Robot, edge: int) -> tuple[Camera, ...]:
    return tuple(
        Camera(
            name=name,
            width=edge,
            height=edge,
            resize="pad",
            interpolation="bilinear",
            values="minus_one_to_one",
        )
        for name in robot.cameras
    )


def _provenance(folder: Folder, config: Config, ignored: int) -> dict[str, Any]:
    weights = folder.weights
    own = weights.path.rglob("*")
    if isinstance(weights, Safetensors):
        own = (folder.path / CONFIG, *weights.files)
    files = [*(file for file in own if file.is_file()), folder.statistics]
    notes = paligemma.smaller(config.language, config.expert, _declared(folder))
    notes.append("openpi computes it in bfloat16: --precision bfloat16 halves it here too")
    about = {
        "from": "openpi",
        "type": folder.kind,
        "robot": folder.facts.robot,
        "sha256": digests(folder.path, files),
        "notes": notes,
        "denoising_steps": config.steps,
        "ignored_weights": ignored,
    }
    return {"imported": about}
