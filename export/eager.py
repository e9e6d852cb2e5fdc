"""Modules that no tracer takes: the archive carries their Python package, and the weights as safetensors."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from export.batch import Batch, Layout
from export.errors import ExportError
from export.source import Source
from export.target import Target


@torch.inference_mode()
def save(model: Any, layout: Layout, path: Path, target: Target) -> tuple[str, ...]:
    """Write the weights of a flat model's own module; tied weights are kept once.

    Returns:
        the names of the values that `act` returns, sorted

    Raises:
        ExportError: the model fails on random inputs.
    """
    try:
        outputs = Batch.random(layout, 2, 0, target.device).run(model)
    except Exception as error:
        raise ExportError(f"{type(model).__name__} fails on random inputs: {error}") from error
    module: nn.Module = model.model
    weights: dict[str, torch.Tensor] = {}
    kept: set[int] = set()
    for name, value in module.state_dict().items():
        if value.data_ptr() not in kept or value.numel() == 0:
            weights[name] = value.contiguous()
            kept.add(value.data_ptr())
    save_file(weights, path)
    return tuple(sorted(outputs))


def described(source: Source, folder: Path) -> dict[str, Any]:
    """Copy the source's package into the archive's folder, and return how it is built.

    Raises:
        ExportError: the source does not say how, or the package is no folder of Python files.
    """
    eager = source.eager
    if eager is None:
        raise ExportError(
            "format 'eager' needs the source's `eager`: the package that builds the module, and its factory"
        )
    package = eager.package.resolve()
    if not (package / "__init__.py").is_file():
        raise ExportError(f"{package.name} is no Python package: it has no __init__.py")
    module = eager.factory.partition(":")[0].partition(".")[0]
    if module != package.name or ":" not in eager.factory:
        raise ExportError(f"factory must be '{package.name}[.module]:function', got {eager.factory!r}")
    if (found := importlib.util.find_spec(f"vla_runtime.{module}")) or module in ("ts", "torch"):
        raise ExportError(f"a package called {module!r} would hide another: {found}")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    shutil.copytree(package, folder / package.name, ignore=ignored)
    return {"factory": eager.factory, "arguments": dict(eager.arguments)}
