"""A model whose linear layers multiply 8-bit integers: for CPUs.

Dynamic quantisation (Jacob et al. 2018, arXiv 1712.05877): the weights are rounded once, each output channel
on its own scale; the inputs of a layer are rounded while it runs, all rows of a batch on one scale. A quarter
of the memory, and on CPUs with 8-bit dot products about a third of the time. Because of the common scale an
answer depends a little on its batch-mates, by no more than the loss that the provenance records.
"""

import copy
import warnings

import torch
from torch import nn
from torch.ao.quantization.qconfig import per_channel_dynamic_qconfig
from torch.ao.quantization.quantize import quantize_dynamic

from export.errors import ExportError
from export.target import Target


def quantised(model: nn.Module, target: Target) -> nn.Module:
    """Return a copy of a float32 model with quantised linear layers, to be traced.

    Raises:
        ExportError: the target can't run it: torch quantises dynamically for TorchScript on a CPU alone.
    """
    if target.format != "torchscript" or target.device != "cpu":
        raise ExportError(
            f"precision 'int8' needs format 'torchscript' and device 'cpu', got {target.format!r} and "
            f"{target.device!r}"
        )
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise ExportError("precision 'int8' quantises linear layers, and this model has none")
    layers = {nn.Linear: per_channel_dynamic_qconfig}
    with warnings.catch_warnings():
        # Its successor, torchao, makes nothing that can be traced into TorchScript.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per", UserWarning)
        return quantize_dynamic(copy.deepcopy(model), layers, torch.qint8).eval()
