"""Arrays that orbax saved from JAX, by tensorstore alone: OCDBT, one zarr array for each.

It reads numbers and JSON, and runs no code of a checkpoint. JAX and orbax are not needed.
"""

import importlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.errors import ExportError

METADATA, MANIFEST = "_METADATA", "manifest.ocdbt"
# What our modules compute with, by the name that tensorstore gives it.
READ = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Arrays:
    """The arrays below a folder `params`; nothing is read before it is asked for."""

    folder: Path

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by path, as `PaliGemma/img/head/kernel`.

        Raises:
            ExportError: the folder is not orbax's or not whole, or an array is of no type that is read.
        """
        return {path: tuple(self._open(names).shape) for path, names in self._named.items()}

    def read(self, path: str) -> Tensor:
        """Return one array in its own type.

        Raises:
            ExportError: it can't be read.
        """
        try:
            found: np.ndarray = self._open(self._named[path]).read().result()
        except (ValueError, OSError) as error:
            raise self._unreadable(path, error) from error
        if found.dtype.name == "bfloat16":
            return torch.from_numpy(found.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(found)

    @cached_property
    def _tree(self) -> dict[str, Any]:
        path = self.folder / METADATA
        if not path.is_file():
            raise ExportError(f"{path} is missing: {self.folder} is not what orbax saved, or not all of it")
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ExportError(f"{path} is not JSON: {error}") from error
        if not isinstance(found, dict) or not isinstance(found.get("tree_metadata"), dict):
            raise ExportError(f"{path} has no tree_metadata: it is of another version of orbax")
        if found.get("use_zarr3") or not (self.folder / MANIFEST).is_file():
            raise ExportError(f"{self.folder}: arrays are read from zarr 2 in OCDBT ({MANIFEST}) alone")
        return found["tree_metadata"]

    @cached_property
    def _named(self) -> dict[str, tuple[str, ...]]:
        """What orbax calls an array, by its path in the policy.

        The published checkpoints' names end with the parameter, those of openpi's training with `value`.
        """
        try:
            named = [tuple(str(part["key"]) for part in one["key_metadata"]) for one in self._tree.values()]
        except (KeyError, TypeError) as error:
            raise ExportError(
                f"{self.folder / METADATA} names its arrays in another way, as of another version of orbax"
            ) from error
        end = -1 if all(names[-1:] == ("value",) for names in named) else None
        return {"/".join(names[1:end]): names for names in named}

    def _open(self, names: tuple[str, ...]) -> Any:
        """Return tensorstore's view of an array."""
        tensorstore = _tensorstore()
        base = f"{self.folder.resolve().as_uri()}/"
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{'.'.join(names)}/"}}
        try:
            found = tensorstore.open(spec, open=True, read=True).result()
        except (ValueError, OSError) as error:
            raise self._unreadable("/".join(names), error) from error
        if found.dtype.name not in READ:
            raise ExportError(
                f"{self.folder}: {'/'.join(names)} is of type {found.dtype.name}; read are: {', '.join(READ)}"
            )
        return found

    def _unreadable(self, path: str, error: Exception) -> ExportError:
        # tensorstore adds its own source lines in brackets.
        reason = " ".join(re.sub(r"\[[^\]]*\]", "", str(error)).split())[:200]
        return ExportError(f"{self.folder} is damaged or not whole: {path} can't be read: {reason}")


def _tensorstore() -> Any:
    try:
        # Loaded by name: it is of an extra of its own.
        return importlib.import_module("tensorstore")
    except ImportError as error:
        raise ExportError(
            "reading JAX's params needs tensorstore: pip install -e '.[jax]', or give a folder that openpi's "
            "examples/convert_jax_model_to_pytorch.py made"
        ) from error
