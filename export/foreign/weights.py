"""Weights of another library into a module of ours, by an explicit table."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from export.errors import ExportError
from export.lower import products
from vla_runtime.spec import Precision

# Key of a weight -> its shape.
Shapes = Mapping[str, tuple[int, ...]]

WEIGHTS = "model.safetensors"
# Suffixes of files whose reading can run code.
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
# How a ZIP file and a bare pickle, the two forms of torch.save, begin.
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
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


class Safetensors:
    """A folder's `model.safetensors`.

    Raises:
        ExportError: there is no such file, or it is none.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.described_by = _weights_file(folder), "its config.json"
        try:
            with safe_open(self.path, "pt") as file:
                found = {key: tuple(file.get_slice(key).get_shape()) for key in sorted(file.keys())}
        except SafetensorError as error:
            raise ExportError(f"{self.path} can't be read as safetensors: {error}") from error
        self.shapes: Shapes = found

    def tensors(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """See `Weights`."""
        try:
            for key in keys:
                # Opened anew for each, which lets go of the pages of the one before.
                with safe_open(self.path, "pt") as file:
                    weight = file.get_tensor(key)
                yield key, weight
                del weight
        except SafetensorError as error:
            raise ExportError(f"{self.path} can't be read as safetensors: {error}") from error

    def shown(self, key: str) -> str:
        """See `Weights`."""
        return key


def load_weights(
    folder: Path, table: Table, build: Callable[[], nn.Module], precision: Precision = "float32"
) -> Loaded:
    """Build a module and fill it from a folder's `model.safetensors`; see `filled`."""
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
        ExportError: a weight can't be read, or a key is unknown, missing or of another shape.
    """
    with torch.device("meta"):
        model = build().eval()
    targets = {key: target for target, key in _placed(weights, table, model).items()}
    narrow = products(model) if precision == "bfloat16" else set[str]()
    state: dict[str, Tensor] = {}
    for key, weight in weights.tensors(targets):
        kind = torch.bfloat16 if targets[key] in narrow else torch.float32
        # A copy, since a weight may be a view of the file.
        state[targets[key]] = weight.to(kind, copy=True)
    model.load_state_dict(state, assign=True)
    model.requires_grad_(requires_grad=False)
    return Loaded(model, tuple(key for key in weights.shapes if table.needless(key)))


def read_shapes(folder: Path) -> Shapes:
    """Return the shapes of a folder's `model.safetensors` by key, without reading the weights.

    Raises:
        ExportError: there is no such file, or it is none.
    """
    return Safetensors(folder).shapes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a small safetensors file.

    Raises:
        ExportError: there is no such file, or it is none.
    """
    if not path.is_file():
        raise ExportError(f"{path} is missing")
    _refuse_pickle(path)
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise ExportError(f"{path} can't be read as safetensors: {error}") from error


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES)
        if pickles:
            raise ExportError(
                f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when it is read: "
                f"save them as {WEIGHTS}"
            )
        raise ExportError(f"{folder} has no {WEIGHTS}")
    _refuse_pickle(path)
    return path


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(9)
        # The length of a safetensors header can begin like a pickle; its ninth byte opens the header.
        if start.startswith(PICKLED) and start[8:] != b"{":
            raise ExportError(
                f"{path} is a pickle by its first bytes, which can run code when it is read: "
                "save the weights with safetensors"
            )


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
