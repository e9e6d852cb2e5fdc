"""One folder of LeRobot's, as far as all its policies share it: features, cameras, state, action, example."""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from export.errors import ExportError
from export.foreign.facts import Facts, Feature, Names, control_hz, dimensions, relative_to_state
from export.foreign.processors import Rule, Step, converted, rule, statistic
from export.source import Observation
from vla_runtime.spec import Camera, ContinuousSpace, Precision, Vector

CONFIG = "config.json"
STATE, ACTION = "observation.state", "action"
# Of a picture that a robot could send [pixels].
LARGEST_EDGE = 16_384


class PolicyFeature(msgspec.Struct):
    """A vector or picture that goes into a policy or comes out of it."""

    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Folder:
    """A policy's files, read and checked as far as all types share them."""

    path: Path
    config: dict[str, Any]
    facts: Facts
    names: Names
    # Steps before and after the policy, by name.
    before: dict[str, Step]
    after: dict[str, Step]
    # In which the weights are to be kept where the policy's are large; see `weights.filled`.
    precision: Precision = "float32"

    def field(self, name: str) -> Any:
        """Return a field of config.json.

        Raises:
            ExportError: there is none.
        """
        if name not in self.config:
            raise ExportError(f"{self.path / CONFIG} has no {name!r}: it is of another version of LeRobot")
        return self.config[name]

    def steps(self, usual: int) -> int:
        """Return the denoising steps that were told, else the policy's own."""
        told = self.facts.denoising_steps
        return usual if told is None else told

    def check_values(self, fields: set[str], known: dict[str, tuple[Any, ...]]) -> None:
        """Refuse a folder that lacks a field, or has a value of one that is not read.

        Raises:
            ExportError: it is so.
        """
        for name in sorted(fields):
            self.field(name)
        for name, values in known.items():
            if self.field(name) not in values:
                raise ExportError(
                    f"{self.path / CONFIG}: {name} is {self.field(name)!r}; read are: "
                    f"{', '.join(map(str, values))}"
                )

    @cached_property
    def inputs(self) -> dict[str, PolicyFeature]:
        """What the policy observes, by its key."""
        return self._features("input_features")

    @cached_property
    def cameras(self) -> tuple[Camera, ...]:
        """The cameras, in the order in which the policy looks at them, but for those that show nothing."""
        empty = converted(self.path / CONFIG, self.config.get("empty_cameras", 0), int)
        unseen = {f"observation.images.empty_camera_{number}" for number in range(empty)}
        found = [
            self._camera(key, feature.shape)
            for key, feature in self.inputs.items()
            if feature.type == "VISUAL" and key not in unseen
        ]
        if not found:
            raise ExportError(f"{self.path / CONFIG} names no picture among its input_features")
        if len({camera.name for camera in found}) < len(found):
            raise ExportError(
                f"{self.path / CONFIG} has pictures that would be called the same in requests: "
                f"{', '.join(camera.name for camera in found)}"
            )
        return tuple(found)

    @cached_property
    def state(self) -> Vector:
        """What the robot measures."""
        others = [
            f"{key} ({feature.type})"
            for key, feature in self.inputs.items()
            if feature.type != "VISUAL" and key != STATE
        ]
        if others:
            raise ExportError(f"{self.path / CONFIG} wants {', '.join(others)}, which no request can carry")
        width = self._width(self.inputs, STATE)
        dims, rule = self._vector(self.before["normalizer_processor"], STATE, "STATE", width)
        return Vector(
            dimensions=dims,
            normalisation=rule.normalisation,
            statistics=rule.statistics,
            epsilon=rule.epsilon,
        )

    @property
    def action_width(self) -> int:
        """Numbers of an action."""
        return self._width(self._features("output_features"), ACTION)

    def action(self, horizon: int, relative: Sequence[int] = ()) -> ContinuousSpace:
        """Return what the actions mean, in chunks of so many.

        Args:
            horizon: actions in a chunk
            relative: places of the dimensions that are differences from the state's of the same place

        Raises:
            ExportError: the folder or the names file do not say it, or contradict it.
        """
        dims, rule = self._vector(
            self.after["unnormalizer_processor"], ACTION, "ACTION", self.action_width, relative
        )
        return ContinuousSpace(
            dimensions=relative_to_state(dims, relative, self.state.names),
            normalisation=rule.normalisation,
            statistics=rule.statistics,
            epsilon=rule.epsilon,
            horizon=horizon,
            control_hz=control_hz(self.facts, self.names),
        )

    def example(self, command: str = "") -> Observation:
        """Return a request in the middle of everything: a soft picture, a plausible state."""
        middle = tuple(float((d.low + d.high) / 2) for d in self.state.dimensions)
        steps = self.config.get("n_obs_steps", 1)
        images = {camera.name: soft_picture(camera) for camera in self.cameras}
        if steps == 1:
            return Observation(images, command, middle)
        return Observation({name: (p,) * steps for name, p in images.items()}, command, (middle,) * steps)

    def provenance(self, notes: list[str], **more: Any) -> dict[str, Any]:
        """Return where the policy comes from, for its archive, and what its user is to know."""
        files = [p for p in self.path.iterdir() if p.suffix in (".json", ".safetensors")]
        found = digests(self.path, files)
        about = {"from": "lerobot", "type": self.config["type"], "sha256": found, "notes": notes}
        return {"imported": about | more}

    def _features(self, name: str) -> dict[str, PolicyFeature]:
        return converted(self.path / CONFIG, self.field(name), dict[str, PolicyFeature])

    def _width(self, features: dict[str, PolicyFeature], key: str) -> int:
        found = features.get(key)
        if found is None or len(found.shape) != 1:
            raise ExportError(
                f"{self.path / CONFIG} needs a vector {key!r} among its features, which are: "
                f"{', '.join(features)}"
            )
        return found.shape[0]

    def _camera(self, key: str, shape: tuple[int, ...]) -> Camera:
        if len(shape) != 3 or shape[0] != 3:
            raise ExportError(
                f"{self.path / CONFIG}: {key} has the shape {shape}; [3, height, width] is read"
            )
        if not all(1 <= edge <= LARGEST_EDGE for edge in shape):
            raise ExportError(f"{self.path / CONFIG}: {key} has edges of {list(shape[1:])} pixels")
        name = re.sub(r"\W", "_", key.removeprefix("observation.images.").removeprefix("observation."))
        found = rule(self.before["normalizer_processor"], key, "VISUAL", 3, action=False)
        size: dict[str, Any] = {"width": shape[2], "height": shape[1], "resize": "none"}
        if found.normalisation == "identity":
            return Camera(name=name, values="zero_to_one", **size)
        mean, std = _mean_and_std(found)
        return Camera(name=name, values="mean_std", mean=mean, std=std, **size)

    def _vector(
        self, step: Step, key: str, kind: str, width: int, relative: Sequence[int] = ()
    ) -> tuple[Any, Rule]:
        found = rule(step, key, kind, width, action=kind == "ACTION")
        low, high = (self._ends(step, key, name, width, relative) for name in ("min", "max"))
        what = kind.lower()
        named = self.names.action if kind == "ACTION" else self.names.state
        return dimensions(named, Feature(what, width, low, high), self.facts.margin), found

    def _ends(
        self, step: Step, key: str, name: str, width: int, relative: Sequence[int]
    ) -> tuple[float, ...] | None:
        """Return one end of a vector's range; where an action is a difference from the state, the state's."""
        found = statistic(step, key, name, width)
        if found is None or not relative:
            return found
        measured = statistic(
            self.before["normalizer_processor"], STATE, name, self._width(self.inputs, STATE)
        )
        if measured is None:
            return None
        return tuple(measured[place] if place in relative else end for place, end in enumerate(found))


def _mean_and_std(found: Rule) -> tuple[Any, Any]:
    """Return a picture rule's channel statistics, of RGB in [0, 1]."""
    statistics = found.statistics
    if found.normalisation == "mean_std":
        return statistics.mean, tuple(value + found.epsilon for value in statistics.std)
    low, high = statistics.low or statistics.q01, statistics.high or statistics.q99
    pairs = list(zip(low, high, strict=True))
    return tuple((a + b) / 2 for a, b in pairs), tuple((b - a) / 2 for a, b in pairs)


def digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of files by their path below a folder."""
    found = {}
    for file in sorted(files):
        with file.open("rb") as opened:
            found[file.relative_to(folder).as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


def soft_picture(camera: Camera) -> np.ndarray:
    """Return a picture that compresses well and is not of one colour: uint8 [H, W, 3]."""
    rows = np.linspace(0, math.pi, camera.height)[:, None, None]
    columns = np.linspace(0, 2 * math.pi, camera.width)[None, :, None]
    waves = np.sin(rows + columns + np.array([0.0, 1.0, 2.0]))
    return (127.5 + 100 * waves).astype(np.uint8)
