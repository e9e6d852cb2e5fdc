"""A model to ONNX: one file for `act`, and one for `encode_command` where there is a command.

`torch.export` captures each method with a dynamic batch size, and torch's own converter writes what it found.
ONNX Runtime computes the files wherever it is installed; torch's code is not in them. Equal models give equal
bytes: the paths of the sources that the converter notes are left out.
"""

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.batch import Batch, Layout
from export.errors import ExportError
from export.flat import differentiates
from export.package import Method, captured
from export.target import Target
from export.trace import TRACED_BATCH
from vla_runtime.module import onnx_file

# Weights beyond it are a file of their own, since one of protobuf's has at most 2 GB [bytes].
LARGE = 1 << 30
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def save(model: Any, layout: Layout, path: Path, target: Target) -> tuple[str, ...]:
    """Capture and write both methods of a `torch.nn.Module` in evaluation mode; takes some seconds each.

    A method whose file is there already is left as it is.

    Returns:
        the names of the values that `act` returns, sorted

    Raises:
        ExportError: a package is missing, or the model can't be captured or written.
    """
    _require_packages()
    if differentiates(model):
        raise ExportError("the policy takes gradients, which ONNX can't: give --format pt2 or eager")
    batch = Batch.random(layout, TRACED_BATCH, 0, target.device)
    with torch.no_grad():
        calls = batch.calls(model)
        outputs = tuple(sorted(model.act(*calls["act"])))
        names = {"act": (layout.inputs, outputs), "encode_command": (("ids", "mask"), layout.command)}
        for name, inputs in calls.items():
            if onnx_file(path, name).is_file():
                continue
            method = Method(model, name, outputs if name == "act" else ())
            program = captured(method, inputs, target.largest_batch)
            _write(program, onnx_file(path, name), *names[name], what=f"{type(model).__name__}.{name}")
    return outputs


def _write(
    program: torch.export.ExportedProgram,
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    what: str,
) -> None:
    try:
        with warnings.catch_warnings():  # torch warns of its own inner workings
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            converted = _converted(program, inputs, outputs)
        weights = sum(value.numel() * value.element_size() for value in program.state_dict.values())
        converted.save(str(path), external_data=weights > LARGE)
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ExportError(f"{what} can't be written as ONNX: {reason[:300]}") from error


def _converted(program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    lowered = program.run_decompositions({torch.ops.aten.cummax.default: _cummax})
    converted: Any = torch.onnx.export(
        lowered, dynamo=True, input_names=inputs, output_names=outputs, optimize=True, verbose=False
    )
    _forget_sources(converted.model)
    return converted


def _cummax(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the running maximum and its index, which ONNX has no operator for: all against all."""
    last = values.movedim(dim, -1)
    length = last.shape[-1]
    before = torch.ones(length, length, dtype=torch.bool, device=values.device).tril()
    least = torch.finfo(values.dtype).min if values.is_floating_point() else torch.iinfo(values.dtype).min
    greatest, index = torch.where(before, last.unsqueeze(-2), least).max(-1)
    return greatest.movedim(-1, dim), index.movedim(-1, dim)


def _forget_sources(model: Any) -> None:
    """Drop the traces of Python that the converter notes at every node: they name files of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for function in model.functions.values():
        for node in function.all_nodes():
            node.metadata_props.clear()


def _require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"format 'onnx' needs {', '.join(missing)}, which this environment lacks: "
            "pip install -e '.[onnx]', or give --format torchscript"
        )
