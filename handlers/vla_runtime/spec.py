"""PolicySpec: everything that is needed to interpret an exported policy. One file, `policy.json`.

Sizes used in the docstrings of this package:
    B  observations in a batch       C  cameras            S  dimensions of the proprioceptive state
    L  tokens of a command           T  horizon [steps]    A  dimensions of an action
    n  observation steps (history), oldest first; there is no such axis where it is 1
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import msgspec

from vla_runtime.artifact_spec import KNOWN_OUTPUTS, ArtifactSpec, Extra, Format, Platform, Precision
from vla_runtime.errors import SpecError
from vla_runtime.input_spec import Camera, Interpolation, Resize, Tokenizer
from vla_runtime.limits import Safety, asked_by, check_limits
from vla_runtime.spaces import ActionSpace, BinnedSpace, ContinuousSpace, DiscreteSpace, Rotation
from vla_runtime.vectors import Dimension, Part, Statistics, Vector, require

# The spec's parts have one home to import from, whichever file defines them.
__all__ = [
    "FILE_NAME",
    "KNOWN_OUTPUTS",
    "ActionSpace",
    "ArtifactSpec",
    "BinnedSpace",
    "Camera",
    "ContinuousSpace",
    "Dimension",
    "DiscreteSpace",
    "Example",
    "Extra",
    "Format",
    "Interpolation",
    "Part",
    "Platform",
    "PolicySpec",
    "Precision",
    "Resize",
    "Rotation",
    "Safety",
    "Statistics",
    "Tokenizer",
    "Vector",
    "dumps",
    "load",
    "upgrade_cameras",
]

FILE_NAME = "policy.json"


class Example(Part, frozen=True):
    """A request and its recorded answer, replayed when the artifact is loaded."""

    # Camera name -> image file beside the spec; n files, oldest first, for a policy with history.
    images: dict[str, str | tuple[str, ...]]
    # Empty for a policy without a command.
    command: str
    # Physical units, as a client sends it; n such for a policy with history.
    state: tuple[float | tuple[float, ...], ...]
    seed: int
    # [T][A], physical units, as the server answers; probabilities [T][V] in a discrete space.
    actions: tuple[tuple[float, ...], ...]
    # The T chosen actions in a discrete space.
    names: tuple[str, ...] = ()


class PolicySpec(Part, frozen=True):
    """All that is needed to interpret the artifact."""

    # Name of the policy as answers and metrics show it.
    name: str
    # Version of the archive.
    version: str
    architecture: str
    cameras: tuple[Camera, ...]
    # None: the policy takes no command.
    tokenizer: Tokenizer | None
    # None: the policy takes no proprioceptive state.
    state: Vector | None
    action: ActionSpace
    safety: Safety
    artifact: ArtifactSpec
    example: Example
    # Where the artifact comes from: digests, versions, parity measured at export.
    provenance: dict[str, Any]
    # Observation steps in a request, oldest first.
    history: int = 1
    # Shape of one observation's noise, standard normal; None: the policy draws none.
    noise: tuple[int, ...] | None = None
    # Most actions that a chunk may begin with because the robot executes them until it is there [steps]
    # (real-time chunking): `act` then takes `prefix` [B, T, A] and `delay` [B]. 0: it takes neither.
    max_delay: int = 0
    format_version: Literal[2] = 2

    def __post_init__(self) -> None:
        names = [camera.name for camera in self.cameras]
        require(bool(names) and len(set(names)) == len(names), f"cameras need distinct names, got {names}")
        require(self.history >= 1, f"history must be 1 at least, got {self.history}")
        require(self.noise is None or min(self.noise, default=0) > 0, f"noise needs sizes, got {self.noise}")
        output = self.action.output
        require(output in self.artifact.outputs, f"outputs must name {output!r}, got {self.artifact.outputs}")
        _check_inputs(self)
        _check_prompt(self)
        _check_delay(self)
        _check_example(self)
        if isinstance(self.action, DiscreteSpace):
            _check_discrete(self.action, self.safety, self.example)
        else:
            _check_states(self.action, self.state)
            check_limits(self.action, self.safety, confident="confidence" in self.artifact.outputs)

    @property
    def state_size(self) -> int:
        """S: 0 for a policy without state."""
        return len(self.state.dimensions) if self.state else 0

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `policy.json` of an unpacked archive, of this format or the one before.

        Raises:
            SpecError: the file is missing, is not JSON or breaks a rule; names the place in the file.
        """
        return load(folder / FILE_NAME, cls, _upgrade)

    def save(self, folder: Path) -> None:
        """Write `policy.json`, indented for people."""
        (folder / FILE_NAME).write_bytes(dumps(self))


P = TypeVar("P", bound=Part)


def load(path: Path, kind: type[P], upgrade: Callable[[dict[str, Any]], None] | None = None) -> P:
    """Read one part from a JSON file.

    Args:
        path: the file
        kind: what it holds
        upgrade: changes a part of `format_version` 1 into one of this version, in place

    Raises:
        SpecError: the file is missing, is not JSON or breaks a rule; names the place in the file.
    """
    try:
        data = path.read_bytes()
        if upgrade and (plain := msgspec.json.decode(data, type=dict)).get("format_version", 1) == 1:
            upgrade(plain)
            plain["format_version"] = 2
            data = json.dumps(plain).encode()
        return msgspec.json.decode(data, type=kind)
    except FileNotFoundError as error:
        raise SpecError(f"{path.name} is missing in {path.parent}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"{path.name}: {error}") from error


def upgrade_cameras(cameras: list[dict[str, Any]]) -> None:
    """Turn cameras of format 1, one `size` and one rule, into those of format 2, in place."""
    for camera in cameras:
        camera.pop("resize", None)
        camera["width"] = camera["height"] = camera.pop("size", None)


def _upgrade(plain: dict[str, Any]) -> None:
    """Turn a `policy.json` of format 1 into one of format 2, in place; `act` took five fixed tensors."""
    try:
        upgrade_cameras(plain["cameras"])
        action, artifact = plain["action"], plain["artifact"]
        width = len(action.get("dimensions", action.get("vocabulary", ())))
        plain["noise"] = (action["horizon"], width) if artifact.pop("stochastic", False) else None
    except (KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"{FILE_NAME} of format 1 lacks {error}") from error
    artifact["command"] = ("command", "command_mask")
    artifact["inputs"] = ("images", "command.command", "command.command_mask", "state", "noise")


def dumps(part: Part) -> bytes:
    """Return a part as indented JSON that ends in a newline."""
    return msgspec.json.format(msgspec.json.encode(part), indent=2) + b"\n"


def _check_inputs(spec: PolicySpec) -> None:
    """Every input of `act` must be something that a request brings."""
    artifact = spec.artifact
    sizes = {(camera.width, camera.height) for camera in spec.cameras}
    known = [f"image.{camera.name}" for camera in spec.cameras]
    known += [f"command.{name}" for name in artifact.command] + [
        "images",
        "state",
        "noise",
        "prefix",
        "delay",
    ]
    unknown = [name for name in artifact.inputs if name not in known]
    require(not unknown, f"artifact.inputs names {unknown}; there are: {', '.join(known)}")
    require(
        "images" not in artifact.inputs or len(sizes) == 1,
        f"artifact.inputs names 'images', which needs cameras of one size, got {sorted(sizes)}",
    )
    require(
        bool(artifact.command) == (spec.tokenizer is not None),
        f"artifact.command is {artifact.command}, and the tokenizer {'set' if spec.tokenizer else 'null'}",
    )


def _check_prompt(spec: PolicySpec) -> None:
    if spec.tokenizer and spec.tokenizer.reads_state:
        require(spec.state is not None, "the tokenizer's template names the state, and the policy has none")
        require(spec.history == 1, f"the tokenizer's template names one state, and history is {spec.history}")


def _check_delay(spec: PolicySpec) -> None:
    """A policy that takes the first actions of a chunk as given must still choose the last one itself."""
    longest, horizon = spec.max_delay, spec.action.horizon
    require(0 <= longest < horizon, f"max_delay must be from 0 to {horizon - 1}, got {longest}")
    require(
        not longest or not isinstance(spec.action, DiscreteSpace),
        "max_delay has no meaning for discrete actions",
    )
    taken = [name for name in ("prefix", "delay") if name in spec.artifact.inputs]
    require(
        len(taken) == (2 if longest else 0),
        f"max_delay is {longest}, and of 'prefix' and 'delay' artifact.inputs names {taken}",
    )


def _check_example(spec: PolicySpec) -> None:
    names = [camera.name for camera in spec.cameras]
    for camera, files in spec.example.images.items():
        require(camera in names, f"example.images names {camera!r}; the cameras are {', '.join(names)}")
        count = 1 if isinstance(files, str) else len(files)
        require(
            count == spec.history,
            f"example.images of {camera!r} needs {spec.history} files, got {count}",
        )


def _check_states(space: ContinuousSpace, state: Vector | None) -> None:
    measured = state.names if state else ()
    for dimension in space.dimensions:
        require(
            dimension.state is None or dimension.state in measured,
            f"{dimension.name}: state names {dimension.state!r}; the policy's state has {measured}",
        )


def _check_discrete(space: DiscreteSpace, safety: Safety, example: Example) -> None:
    require(safety.max_step is None, "safety.max_step has no meaning for discrete actions")
    hold = safety.hold_action
    require(hold is None or isinstance(hold, str), f"safety.hold_action must name an action, got {hold}")
    holds = safety.mode == "hold" or safety.min_confidence is not None
    require(not holds or hold is not None, f"safety.{asked_by(safety)} needs a safety.hold_action")
    for name in (*example.names, *([hold] if isinstance(hold, str) else ())):
        space.index(name)
