"""A model to one AOTInductor package with the two methods `encode_command` and `act`.

`torch.export` captures each method with a dynamic batch size, AOTInductor compiles it to machine code of this
machine. g++ is needed here, not where the package is served. The bytes are not reproducible: the compiler
writes the paths of its working files into its output. The archive's provenance still names what went in.
"""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.batch import Batch, Layout
from export.errors import ExportError
from export.flat import differentiates
from export.target import Target
from export.trace import TRACED_BATCH


class Method(nn.Module):
    """One method of a model as the `forward` that torch.export reads."""

    def __init__(self, model: nn.Module, name: str, outputs: tuple[str, ...] = ()) -> None:
        """Wrap the method `name`; with `outputs` it returns these values of its dict, in this order."""
        super().__init__()
        self.model, self.name, self.outputs = model, name, outputs

    def forward(self, *inputs: Tensor) -> Any:
        """Call the method."""
        returned = getattr(self.model, self.name)(*inputs)
        return tuple(returned[name] for name in self.outputs) if self.outputs else returned


def package(model: Any, layout: Layout, path: Path, target: Target) -> tuple[str, ...]:
    """Capture and compile both methods of a `torch.nn.Module` in evaluation mode; takes tens of seconds.

    Args:
        model: on the target's device, the only one that the package will run on
        layout: the shapes of what the methods take
        path: the package to write
        target: its batch sizes and device

    Returns:
        the names of the values that `act` returns, sorted

    Raises:
        ExportError: there is no compiler, or the model can't be captured or compiled.
    """
    # Takes seconds to import, for this format only.
    from torch._inductor.package.package import package_aoti  # noqa: PLC0415

    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ExportError(
            f"a .pt2 is compiled by {compiler}, which is not here: install it, or use torchscript"
        )
    batch = Batch.random(layout, TRACED_BATCH, 0, target.device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own inner workings
        calls = batch.calls(model)
        outputs = model.act(*calls["act"])
        captured = {name: _capture(model, name, calls[name], target.largest_batch) for name in calls}
        files = {name: _compile(model, captured[name], calls[name]) for name in calls}
        package_aoti(str(path), files)
    return tuple(sorted(outputs))


def _capture(model: nn.Module, name: str, inputs: tuple[Tensor, ...], largest: int) -> torch.fx.GraphModule:
    """Capture one method for 1 to `largest` observations, with the gradients that it takes."""
    method = Method(model, name)
    if not (name == "act" and differentiates(model)):
        return captured(method, inputs, largest).module()
    try:
        plain = _without_gradients(method, inputs)
        return torch.export.export(plain, inputs, dynamic_shapes=_shapes(inputs, largest)).module()
    except Exception as error:
        raise _refused(method, error) from error


def captured(method: Method, inputs: tuple[Tensor, ...], largest: int) -> torch.export.ExportedProgram:
    """Capture one method for 1 to `largest` observations.

    Raises:
        ExportError: it can't be, with a dynamic batch size.
    """
    try:
        return torch.export.export(method, inputs, dynamic_shapes=(_shapes(inputs, largest),))
    except Exception as error:
        raise _refused(method, error) from error


def _shapes(inputs: tuple[Tensor, ...], largest: int) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("batch", min=1, max=max(largest, TRACED_BATCH + 1))
    return tuple({0: batch} for _ in inputs)


def _refused(method: Method, error: Exception) -> ExportError:
    what = f"{type(method.model).__name__}.{method.name}"
    return ExportError(f"{what} can't be captured with a dynamic batch size: {_reason(error)}")


def _without_gradients(method: nn.Module, inputs: tuple[Tensor, ...]) -> torch.fx.GraphModule:
    """Write out the operations that gradients are made of, which torch.export can't see."""
    # Takes seconds to import, for such policies only.
    from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415

    return make_fx(method, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)


def _compile(model: nn.Module, captured: torch.fx.GraphModule, inputs: tuple[Tensor, ...]) -> list[Any]:
    """Compile one captured method; returns the files that belong into the package."""
    options = {"aot_inductor.package": True}
    try:
        # With the sources: torch 2.11 finds the metadata of a package by their name.
        files: Any = torch._inductor.aot_compile(captured, inputs, options=options)
    except Exception as error:
        raise ExportError(f"{type(model).__name__} can't be compiled: {_reason(error)}") from error
    return list(files)


def _reason(error: Exception) -> str:
    """Return what an error says first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
