"""Low-rank adapters: a trained model learns on by small matrices beside its own, which stay as they are.

After Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", by the library peft.
"""

import importlib
from typing import Any

from torch import nn

from vla.models import AnyModel
from vla.models.parts.attention import Block


def adapt(model: AnyModel, rank: int) -> int:
    """Put an adapter beside each linear layer of the model's transformers, and freeze all else, in place.

    An adapter adds the product of two matrices, of which one begins as zero, times two.

    Returns:
        the number of parameters that are trained

    Raises:
        ValueError: the model has no transformer, or peft is not installed.
    """
    layers = transformer_layers(model)
    if not layers:
        raise ValueError(
            "lora needs an architecture with transformer blocks, such as clip, vl_transformer or rt2"
        )
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise ValueError("lora needs the package peft: pip install -e .[train]") from error
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=layers)
    peft.inject_adapter_in_model(config, model)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def transformer_layers(model: nn.Module) -> list[str]:
    """Return the names of the linear layers in a model's transformer blocks, its own and those of towers."""
    towers = importlib.import_module("transformers").PreTrainedModel
    return sorted(
        {
            f"{name}.{inner}"
            for name, module in model.named_modules()
            if isinstance(module, (Block, towers))
            for inner, layer in module.named_modules()
            if isinstance(layer, nn.Linear)
        }
    )


def merge(model: nn.Module) -> None:
    """Add every adapter to its layer's weights, and take it out: the model is an ordinary one again."""
    tuner = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
    adapted: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, tuner)
    }
    for name, module in adapted.items():
        module.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module.get_base_layer())
    model.requires_grad_(requires_grad=True)
