"""Files of safetensors, whole or in shards; never a pickle."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from export.errors import ExportError

# Key of a weight -> its shape.
Shapes = Mapping[str, tuple[int, ...]]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Types of weights that are numbers themselves: others stand for numbers by a scale that lies elsewhere.
READ = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Suffixes of files whose reading can run code.
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
# How a ZIP file and a bare pickle, the two forms of torch.save, begin.
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# How a file begins that stands for one which Git LFS has not fetched.
POINTER = b"version https://git-lfs"


class Safetensors:
    """A folder's `model.safetensors`, or the shards that its index names.

    Raises:
        ExportError: there is no such file, or it is none.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.described_by = folder / WEIGHTS, "its config.json"
        index = folder / INDEX
        sharded = index.is_file() and not self.path.is_file()
        # The file of each key.
        self._files = _placed(index) if sharded else dict.fromkeys(_keys(_whole(folder)), self.path)
        self.path = index if sharded else self.path
        # What the weights are read from.
        self.files = sorted({self.path, *self._files.values()})
        self.shapes: Shapes = {}
        for file in sorted(set(self._files.values())):
            self.shapes |= _shapes(file, sorted(key for key, own in self._files.items() if own == file))

    def tensors(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """See `weights.Weights`."""
        for key in keys:
            try:
                # Opened anew for each, which lets go of the pages of the one before.
                with safe_open(self._files[key], "pt") as file:
                    weight = file.get_tensor(key)
            except SafetensorError as error:
                raise _unreadable(self._files[key], error) from error
            if weight.dtype not in READ:
                raise ExportError(
                    f"{self._files[key]}: {key} is of type {_name(weight.dtype)}, as of a quantised policy; "
                    f"read are: {', '.join(map(_name, READ))}"
                )
            yield key, weight
            del weight

    def shown(self, key: str) -> str:
        """See `weights.Weights`."""
        return key


def read_shapes(folder: Path) -> Shapes:
    """Return the shapes of a folder's weights by key, without reading them; see `Safetensors`."""
    return Safetensors(folder).shapes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a small safetensors file.

    Raises:
        ExportError: there is no such file, or it is none.
    """
    keys = _keys(path)
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in keys}
    except SafetensorError as error:
        raise _unreadable(path, error) from error


def _whole(folder: Path) -> Path:
    path = folder / WEIGHTS
    if path.is_file():
        return path
    pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES)
    if pickles:
        raise ExportError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when it is read: "
            f"save them as {WEIGHTS}"
        )
    raise ExportError(f"{folder} has no {WEIGHTS}")


def _placed(index: Path) -> dict[str, Path]:
    """Return the shard of every key, after checking that index and shards have the same keys."""
    try:
        found: Any = json.loads(index.read_text())["weight_map"]
        places = {str(key): str(name) for key, name in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{index} has no weight_map, so nothing says which file has which weight"
        ) from error
    shards = {name: index.parent / name for name in sorted(set(places.values()))}
    for name, path in shards.items():
        if Path(name).name != name:
            raise ExportError(f"{index} names {name!r}, which is no file beside it")
        listed, inside = {key for key, own in places.items() if own == name}, set(_keys(path))
        if listed != inside:
            other = sorted(listed ^ inside)
            raise ExportError(f"{index} and {name} have different weights ({len(other)}): {other[0]}, ...")
    return {key: shards[name] for key, name in places.items()}


def _keys(path: Path) -> list[str]:
    if not path.is_file():
        raise ExportError(f"{path} is missing")
    _check_start(path)
    try:
        with safe_open(path, "pt") as file:
            return sorted(file.keys())
    except SafetensorError as error:
        raise _unreadable(path, error) from error


def _shapes(path: Path, keys: Iterable[str]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    with safe_open(path, "pt") as file:
        for key in keys:
            found[key] = tuple(file.get_slice(key).get_shape())
    return found


def _check_start(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(len(POINTER))
    # The length of a safetensors header can begin like a pickle; its ninth byte opens the header.
    if start.startswith(PICKLED) and start[8:9] != b"{":
        raise ExportError(
            f"{path} is a pickle by its first bytes, which can run code when it is read: "
            "save the weights with safetensors"
        )
    if start == POINTER:
        raise ExportError(f"{path} is a pointer of Git LFS, and not the file itself: run `git lfs pull`")


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _unreadable(path: Path, error: SafetensorError) -> ExportError:
    return ExportError(f"{path} can't be read as safetensors: {error}")
