"""A model to one TorchScript file with the two methods `encode_command` and `act`."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.jit._trace import TracerWarning

from export.batch import Batch
from export.errors import ExportError
from export.target import Target
from vla.models import Sizes

# The batch size that is traced: one that no verified batch size equals, so that a baked one shows.
TRACED_BATCH = 2


@torch.inference_mode()
def trace(model: Any, sizes: Sizes, path: Path, target: Target) -> tuple[str, ...]:
    """Trace both methods of a `torch.nn.Module` in evaluation mode and save them.

    Returns:
        the names of the values that `act` returns, sorted

    Raises:
        ExportError: the model can't be traced.
    """
    batch = Batch.random(sizes, TRACED_BATCH, seed=0, target=target)
    try:
        methods = batch.calls(model)
        outputs = model.act(*methods["act"])
        with warnings.catch_warnings():
            # Of what a trace may freeze; whether it did, `verify` finds out.
            warnings.simplefilter("ignore", TracerWarning)
            # Not strict: `act` returns a dict.
            traced = torch.jit.trace_module(model, methods, strict=False, check_trace=False)
    except Exception as error:
        raise ExportError(f"{type(model).__name__} can't be traced: {error}") from error
    torch.jit.save(traced, str(path))
    return tuple(sorted(outputs))
