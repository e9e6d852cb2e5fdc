"""RLDS as TensorFlow Datasets writes it, Open X-Embodiment's data sets among it, without TensorFlow.

A folder holds `features.json`, `dataset_info.json` and files of records, one an episode. Of each step are
read: as cameras all pictures of three channels in the observation; as state its other numbers, embeddings
left out; as action all numbers of the action; as command the text that is called an instruction.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vla.data.episodes import About, DataError, Episode
from vla.data.pictures import opened
from vla.data.tfrecord import Values, example, records

FEATURES, INFO = "features.json", "dataset_info.json"
STEPS, OBSERVATION, ACTION = "steps", "observation", "action"
NUMBERS = ("float", "bfloat", "int", "uint", "bool")


@dataclass(frozen=True)
class Leaf:
    """One value of each step."""

    # Its names, joined by slashes: the record's name of it.
    name: str
    # `image`, `text`, or a type of numbers.
    dtype: str
    shape: tuple[int, ...]

    @property
    def short(self) -> str:
        """What it is called inside the observation or the action."""
        parts = self.name.split("/")[1:]
        return "_".join(parts[1:] if parts[0] in (OBSERVATION, ACTION) and len(parts) > 1 else parts)

    @property
    def numeric(self) -> bool:
        """Whether it is one number or a vector of them."""
        return self.dtype.startswith(NUMBERS) and len(self.shape) <= 1

    @property
    def width(self) -> int:
        """Numbers a step."""
        return int(np.prod(self.shape))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its numbers."""
        return (self.short,) if self.width == 1 else tuple(f"{self.short}_{i}" for i in range(self.width))


class Rlds:
    """A folder of RLDS; a `Source`.

    Raises:
        DataError: a file is missing or malformed, or the steps have no action or no picture.
    """

    def __init__(self, folder: Path, control_hz: float, split: str = "train") -> None:
        """`control_hz`: the rate, which the format does not say [Hz]."""
        self._folder, self._split = folder, split
        described = _json(folder / INFO)
        self._leaves = tuple(_steps(_json(folder / FEATURES), folder))
        self._cameras = {
            leaf.short: leaf
            for leaf in self._leaves
            if leaf.dtype == "image"
            and leaf.shape[-1:] == (3,)
            and leaf.name.startswith("steps/observation/")
        }
        self._state = self._numbers("steps/observation/")
        self._action = self._numbers("steps/action")
        if not self._action:
            raise DataError(f"{folder / FEATURES}: the steps have no action")
        self._lengths = _lengths(described, split, folder / INFO)
        self.about = About(
            robot=str(described.get("name", "unknown")),
            control_hz=control_hz,
            cameras={name: self._size(name, leaf) for name, leaf in self._cameras.items()},
            state=tuple(name for leaf in self._state for name in leaf.names),
            action=tuple(name for leaf in self._action for name in leaf.names),
        )

    def __len__(self) -> int:
        """Count the episodes."""
        return sum(self._lengths)

    def __iter__(self) -> Iterator[Episode]:
        """Read the episodes in order, one at a time.

        Raises:
            DataError: a file is missing, damaged, or has another number of episodes than is said.
        """
        paths = sorted(self._folder.glob(f"*-{self._split}.tfrecord-*"))
        if len(paths) != len(self._lengths):
            raise DataError(
                f"{self._folder}: {len(paths)} files of the split {self._split}, {INFO} says "
                f"{len(self._lengths)}"
            )
        for path, length in zip(paths, self._lengths, strict=True):
            count = 0
            for record in records(path):
                yield self._episode(example(record), f"{path}: record {count}")
                count += 1
            if count != length:
                raise DataError(f"{path}: {count} episodes, {INFO} says {length}")

    @cached_property
    def _instruction(self) -> Leaf | None:
        said = [leaf for leaf in self._leaves if leaf.dtype == "text" and "instruction" in leaf.name]
        return said[0] if said else None

    def _numbers(self, prefix: str) -> tuple[Leaf, ...]:
        return tuple(
            leaf
            for leaf in self._leaves
            if leaf.numeric and leaf.name.startswith(prefix) and "embedding" not in leaf.name
        )

    def _episode(self, values: dict[str, Values], where: str) -> Episode:
        action = self._vector(values, self._action, where)
        count = len(action)
        commands = ("",) * count
        if self._instruction is not None:
            commands = tuple(text.decode() for text in self._texts(values, self._instruction, where, count))
        return Episode(
            images={
                name: [opened(each, where) for each in self._texts(values, leaf, where, count)]
                for name, leaf in self._cameras.items()
            },
            state=self._vector(values, self._state, where)
            if self._state
            else np.zeros((count, 0), np.float32),
            actions=action,
            commands=commands,
        )

    def _vector(self, values: dict[str, Values], leaves: Sequence[Leaf], where: str) -> NDArray[np.float32]:
        """Return what several leaves hold side by side: float32 [n, D]."""
        parts = []
        for leaf in leaves:
            value = values.get(leaf.name)
            if not isinstance(value, np.ndarray) or not len(value) or len(value) % leaf.width:
                raise DataError(f"{where}: {leaf.name} is not the numbers that {FEATURES} says")
            parts.append(value.reshape(-1, leaf.width).astype(np.float32))
        if len({len(part) for part in parts}) != 1:
            raise DataError(f"{where}: {', '.join(leaf.name for leaf in leaves)} have different lengths")
        return np.concatenate(parts, axis=1)

    def _texts(self, values: dict[str, Values], leaf: Leaf, where: str, count: int) -> list[bytes]:
        value = values.get(leaf.name)
        if not isinstance(value, list) or len(value) != count:
            raise DataError(f"{where}: {leaf.name} is not {count} strings of bytes")
        return value

    def _size(self, name: str, leaf: Leaf) -> tuple[int, int]:
        height, width = leaf.shape[:2]
        if height > 0 and width > 0:
            return height, width
        # Pictures of no declared size: as the first one is.
        record = next(records(min(self._folder.glob(f"*-{self._split}.tfrecord-*"))))
        value = example(record).get(leaf.name)
        if not isinstance(value, list) or not value:
            raise DataError(f"{self._folder}: no picture of {name} in the first record")
        picture = opened(value[0], str(self._folder))
        return picture.height, picture.width


def _steps(features: Any, folder: Path) -> Iterator[Leaf]:
    """Yield the values of a step, in the order of their names."""
    try:
        steps = features["featuresDict"]["features"][STEPS]["sequence"]["feature"]
        yield from _walk(steps, STEPS)
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / FEATURES}: no RLDS, it has no sequence of steps: {error}") from error


def _walk(feature: dict[str, Any], name: str) -> Iterator[Leaf]:
    if "featuresDict" in feature:
        for key, each in sorted(feature["featuresDict"]["features"].items()):
            yield from _walk(each, f"{name}/{key}")
    elif "image" in feature:
        yield Leaf(name, "image", _shape(feature["image"]))
    elif "text" in feature:
        yield Leaf(name, "text", ())
    elif "tensor" in feature:
        dtype = feature["tensor"]["dtype"]
        encoded = feature["tensor"].get("encoding", "none") != "none"
        kind = "text" if dtype in ("string", "object", "str") else "encoded" if encoded else dtype
        yield Leaf(name, kind, _shape(feature["tensor"]))


def _shape(feature: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(each) for each in feature.get("shape", {}).get("dimensions", ()))


def _lengths(described: Any, split: str, path: Path) -> list[int]:
    """Return how many episodes each file of a split has."""
    splits = {each["name"]: each for each in described.get("splits", ())}
    if split not in splits:
        raise DataError(f"{path}: no split {split!r}; there are {', '.join(splits) or 'none'}")
    return [int(each) for each in splits[split]["shardLengths"]]


def _json(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: {error}") from error
