"""`--pretrained`: folders of published models, each for the tower of an architecture that it is of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from vla import checkpoint
from vla.models import module_of
from vla.models.parts.published_files import read_config
from vla_runtime.preprocessing import CommandTokenizer
from vla_runtime.spec import Tokenizer

TOKENIZER = "tokenizer.json"
# Convolutional towers' stages of a ResNet, where the architecture has plain convolutions by default.
RESNET_STAGES = {"early_fusion": 2, "late_fusion": 1}


def tower_values(architecture: str, values: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """Return the values of an architecture's `Config` with the folders and the sizes of their models.

    Raises:
        ValueError: the architecture has no tower of that kind, or one of other layers.
        OSError: a folder is missing or holds no model.
    """
    takes = getattr(module_of(architecture).Config, "published", {})
    for folder in folders:
        about = read_config(folder)
        kind = about["model_type"]
        if kind not in takes:
            known = f"takes {' and '.join(takes)}" if takes else "has no published tower"
            raise ValueError(f"pretrained: {folder} holds a {kind}; {architecture} {known}")
        if values[takes[kind]]:
            raise ValueError(f"pretrained: {folder} is the second {kind}; {architecture} has one")
        values = values | _sizes(kind, about) | {takes[kind]: str(folder)}
        if kind == "resnet" and module_of(architecture).Config(**values).backbone != "resnet":
            values |= {"backbone": "resnet", "depth": RESNET_STAGES[architecture]}
    return values


def _sizes(kind: str, about: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes that a model's own configuration names; CLIP's are taken with its weights."""
    names = {
        "clip": {},
        "resnet": {"channels": "embedding_size"},
        "mobilenet_v2": {"multiplier": "depth_multiplier"},
        "efficientnet": {"multiplier": "width_coefficient"},
        "distilbert": {
            "text_width": "dim",
            "text_layers": "n_layers",
            "text_heads": "n_heads",
            "text_inner": "hidden_dim",
        },
    }
    return {ours: about[theirs] for ours, theirs in names[kind].items()}


def tokenizer_values(architecture: str, folders: Sequence[Path], length: int) -> dict[str, Any]:
    """Return what a checkpoint's `Config` says of the tokenizer: the architecture's, or a DistilBERT's own.

    Args:
        architecture: of the policy
        folders: of published models
        length: longest command [tokens]; 0: as usual

    Raises:
        ValueError: a DistilBERT's folder has no tokenizer, or one of another vocabulary.
        SpecError: the tokenizer can't be read.
    """
    usual = checkpoint.tokenizer_of(architecture)
    for folder in folders:
        about = read_config(folder)
        if about["model_type"] == "distilbert":
            tokenizer = Tokenizer(
                file=TOKENIZER,
                context_length=length or min(usual.context_length, about["max_position_embeddings"]),
                pad_id=about.get("pad_token_id") or 0,
            )
            if not (folder / TOKENIZER).is_file():
                raise ValueError(f"pretrained: {folder} has no {TOKENIZER}, by which its words are read")
            known, expected = CommandTokenizer(folder, tokenizer).vocabulary, about["vocab_size"]
            if known != expected:
                raise ValueError(
                    f"pretrained: {folder}/{TOKENIZER} has {known} entries, the model beside it {expected}"
                )
            return {"tokenizer": tokenizer, "tokenizer_from": str(folder)}
    return {"tokenizer": msgspec.structs.replace(usual, context_length=length or usual.context_length)}
