"""Weights of another library into a module of ours, by an explicit table."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.foreign.tensors import Safetensors, Shapes
from export.lower import products
from vla_runtime.spec import Precision

SHOWN = 6


@dataclass(frozen=True)
class Table:
    """What becomes of each key of a file: the first prefix that it begins with decides."""

    # (prefix of a key, prefix of the module's parameter in its place)
    taken: tuple[tuple[str, str], ...]
    # (pattern of keys, as in file names, and why the policy does not need them)
    ignored: tuple[tuple[str, str], ...] = ()

    def target(self, key: str) -> str | None:
        """Return the parameter that a key belongs to, None for a key of no entry."""
        found = next(((old, new) for old, new in self.taken if key.startswith(old)), None)
        return found and found[1] + key.removeprefix(found[0])

    def key(self, target: str) -> str:
        """Return the key of a file that fills a parameter."""
        old, new = next((old, new) for old, new in self.taken if target.startswith(new))
        return old + target.removeprefix(new)

    def needless(self, key: str) -> bool:
        """Whether a key is named as ignored."""
        return any(fnmatchcase(key, pattern) for pattern, _ in self.ignored)


@dataclass(frozen=True)
class Loaded:
    """A module with its weights, and the keys of the file that it does not need."""

    model: nn.Module
    ignored: tuple[str, ...]


class Weights(Protocol):
    """A checkpoint's weights by their keys in a PyTorch module; read when they are asked for."""

    # What errors name: the file or folder, and what says which weights there have to be.
    path: Path
    described_by: str
    shapes: Shapes

    def tensors(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield these keys, each once, and their weights in their own type.

        Raises:
            ExportError: one can't be read.
        """
        ...

    def shown(self, key: str) -> str:
        """Return what the checkpoint itself calls a weight."""
        ...


def load_weights(
    folder: Path, table: Table, build: Callable[[], nn.Module], precision: Precision = "float32"
) -> Loaded:
    """Build a module and fill it from a folder's safetensors; see `filled`."""
    return filled(Safetensors(folder), table, build, precision)


def filled(
    weights: Weights, table: Table, build: Callable[[], nn.Module], precision: Precision = "float32"
) -> Loaded:
    """Build a module and fill it with a checkpoint's weights, never more than one of them in memory twice.

    Args:
        weights: of the checkpoint
        table: where each key goes
        build: makes the module; called on the meta device, so that nothing is initialised for nothing
        precision: with `bfloat16` the weights of matrix products are kept in it, as `export.lower.Lowered`
            keeps them; all others, and with any other precision these too, are float32

    Raises:
        ExportError: a weight can't be read or is not finite; a key is unknown, missing or of another shape.
    """
    with torch.device("meta"):
        model = build().eval()
    targets = {key: target for target, key in _placed(weights, table, model).items()}
    narrow = products(model) if precision == "bfloat16" else set[str]()
    state: dict[str, Tensor] = {}
    for key, weight in weights.tensors(targets):
        kind = torch.bfloat16 if targets[key] in narrow else torch.float32
        # One pass; a weight may be float16, whose own sum would overflow.
        if not weight.sum(dtype=torch.float32).isfinite():
            raise ExportError(f"{weights.path}: {weights.shown(key)} has values that are not finite")
        # A copy, since a weight may be a view of the file.
        state[targets[key]] = weight.to(kind, copy=True)
    model.load_state_dict(state, assign=True)
    model.requires_grad_(requires_grad=False)
    return Loaded(model, tuple(key for key in weights.shapes if table.needless(key)))


def _placed(weights: Weights, table: Table, model: nn.Module) -> dict[str, str]:
    """Return the key of every parameter and buffer of the model, each used once."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes, places = weights.shapes, dict[str, str]()
    unknown, doubled = [], []
    for key in shapes:
        if table.needless(key):
            continue
        target = table.target(key)
        if target not in wanted:
            unknown.append(weights.shown(key))
        elif target in places:
            doubled.append(weights.shown(key))
        else:
            places[target] = key
    shaped = [
        f"{weights.shown(key)} {list(shapes[key])} instead of {list(wanted[target])}"
        for target, key in places.items()
        if shapes[key] != wanted[target]
    ]
    faults = {
        "unknown keys": unknown,
        "keys for a place that is taken": doubled,
        "missing keys": sorted(table.key(name) for name in wanted.keys() - places.keys()),
        "other shapes": shaped,
    }
    check(weights, faults)
    return places


def check(weights: Weights, faults: Mapping[str, Sequence[str]]) -> None:
    """Refuse a checkpoint with faults, which are lists of keys by what is wrong with them.

    Raises:
        ExportError: there is one.
    """
    if any(faults.values()):
        found = "; ".join(_listed(what, keys) for what, keys in faults.items() if keys)
        raise ExportError(f"{weights.path} does not fit {weights.described_by}: {found}")


def _listed(what: str, keys: Sequence[str]) -> str:
    """Return a count and the first few."""
    more = f", and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{what} ({len(keys)}): {', '.join(keys[:SHOWN])}{more}"


def depth_of(shapes: Shapes, start: str) -> int:
    """Return how many layers there are, whose weights' keys begin with `start` and a number."""
    return len({key.removeprefix(start).partition(".")[0] for key in shapes if key.startswith(start)})


def shape_of(shapes: Shapes, key: str, axes: int, *, policy: str) -> tuple[int, ...]:
    """Return a weight's shape, of so many axes.

    Raises:
        ExportError: it is missing or has another number of axes, so the weights are not that policy's.
    """
    found = shapes.get(key)
    if found is None or len(found) != axes or min(found) < 1:
        what = "is missing" if found is None else f"has the shape {list(found)}"
        raise ExportError(f"the weights are no {policy}'s: {key} {what}")
    return found
