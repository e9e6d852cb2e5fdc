"""A model that computes its matrix products in bfloat16, whatever its own code says about precision.

Weights of linear layers, convolutions and embeddings become bfloat16, half as large; autocast casts what is
multiplied with them. Normalisation, recurrent layers and everything between stay in float32: casting a whole
model breaks where its code mixes in a float32 mask or time step, and loses positions read from attention.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
# Layers whose weights stay in float32, and so must their inputs.
EXACT = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, nn.RNNBase)


class Lowered(nn.Module):
    """The same model, in evaluation mode; inputs and outputs stay float32."""

    def __init__(self, model: nn.Module, device: str = "cpu", *, in_place: bool = False) -> None:
        """Lower a copy of a model, or with `in_place` the model itself, which saves the memory of a copy."""
        super().__init__()
        self.model: Any = model if in_place else copy.deepcopy(model)
        self.kind = torch.device(device).type
        for module in self.model.modules():
            if isinstance(module, PRODUCTS):
                module.to(torch.bfloat16)
            if isinstance(module, nn.Embedding):
                module.register_forward_hook(lambda _module, _inputs, output: output.float())
            if isinstance(module, EXACT):
                module.register_forward_pre_hook(lambda _module, inputs: _float(inputs))
            if isinstance(module, nn.RNNBase):
                # Autocast would round what they multiply, which processors without bfloat16 can't even run.
                module.forward = torch.autocast(self.kind, enabled=False)(module.forward)
        self.eval()

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """See `vla_runtime.module.Module`."""
        # No cache: a trace must not share a cast between calls.
        with torch.autocast(self.kind, torch.bfloat16, cache_enabled=False):
            encoded = self.model.encode_command(input_ids, attention_mask)
        return _float(encoded)

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        """See `vla_runtime.module.Module`."""
        with torch.autocast(self.kind, torch.bfloat16, cache_enabled=False):
            outputs = self.model.act(*inputs)
        return _float(outputs)


class Exact(TorchFunctionMode):
    """Inside it, layers with weights in bfloat16 compute in float32, each with a float32 copy while it runs.

    What a lowered model is compared with where its float32 weights would take too much memory.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch's."""
        if func in (functional.linear, functional.conv2d):
            args = tuple(_float(value) for value in args)
        found = func(*args, **(kwargs or {}))
        # A few rows, and not the table.
        return _float(found) if func is functional.embedding else found


def products(model: nn.Module) -> set[str]:
    """Return the names of the parameters that `Lowered` keeps in bfloat16."""
    return {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, PRODUCTS)
        for own, _ in module.named_parameters(recurse=False)
    }


def _float(values: Any) -> Any:
    """Turn floating tensors into float32, also inside tuples and dicts; others stay as they are."""
    if isinstance(values, Tensor):
        return values.float() if values.is_floating_point() else values
    if isinstance(values, tuple):
        return tuple(_float(value) for value in values)
    if isinstance(values, dict):
        return {name: _float(value) for name, value in values.items()}
    return values
