"""A model to one TorchScript file with the two methods `encode_command` and `act`."""

import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.jit._trace import TracerWarning

from archive.write import EPOCH, PIECE
from export.batch import Batch, Layout
from export.errors import ExportError
from export.flat import differentiates
from export.target import Target

# The batch size that is traced: one that no verified batch size equals, so that a baked one shows.
TRACED_BATCH = 2


@torch.inference_mode()
def trace(model: Any, layout: Layout, path: Path, target: Target) -> tuple[str, ...]:
    """Trace both methods of a `torch.nn.Module` in evaluation mode and save them.

    Returns:
        the names of the values that `act` returns, sorted

    Raises:
        ExportError: the model can't be traced.
    """
    if differentiates(model):
        raise ExportError("the policy takes gradients, which TorchScript can't: give --format pt2 or eager")
    batch = Batch.random(layout, TRACED_BATCH, 0, target.device)
    try:
        methods = batch.calls(model)
        outputs = model.act(*methods["act"])
        with warnings.catch_warnings():
            # Of what a trace may freeze; whether it did, `verify` finds out.
            warnings.simplefilter("ignore", TracerWarning)
            # Of properties that are going: a trace reads every one of a module.
            warnings.simplefilter("ignore", FutureWarning)
            # Not strict: `act` returns a dict.
            traced = torch.jit.trace_module(model, methods, strict=False, check_trace=False)
    except Exception as error:
        raise ExportError(f"{type(model).__name__} can't be traced: {error}") from error
    for name in methods:
        _follow_inputs(getattr(traced, name).graph)
    torch.jit.save(traced, str(path))
    _forget_sources(path)
    return tuple(sorted(outputs))


def _follow_inputs(graph: Any) -> None:
    """Let a traced method make its own tensors where its input lies, not on the device it was traced on.

    A trace keeps that device as a constant: of an LSTM's first state, of a mask made by `arange`.
    """
    torch._C._jit_pass_inline(graph)
    given = next(value for value in graph.inputs() if isinstance(value.type(), torch.TensorType))
    for constant in graph.findAllNodes("prim::Constant"):
        if constant.output().type().kind() != "DeviceObjType":
            continue
        device = graph.create("prim::device", [given], 1)
        device.output().setType(torch._C.DeviceObjType.get())
        device.insertBefore(constant)
        constant.output().replaceAllUsesWith(device.output())
        constant.destroy()


def _forget_sources(path: Path) -> None:
    """Drop the paths of the source files from a TorchScript file: equal models give equal bytes anywhere.

    They stand in the debug files, which only error messages read, and in the hash over all files.
    """
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as new:
        for member in old.infolist():
            if member.filename.endswith((".debug_pkl", "/.data/serialization_id")):
                continue
            kept = zipfile.ZipInfo(member.filename, EPOCH)
            with (
                old.open(member) as source,
                new.open(kept, "w", force_zip64=member.file_size > 1 << 31) as file,
            ):
                shutil.copyfileobj(source, file, PIECE)
    partial.replace(path)
