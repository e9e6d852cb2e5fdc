"""Local folders of published models, as transformers saves them: what they hold, and their weights."""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

M = TypeVar("M", bound=PreTrainedModel)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a folder's model, which has a `model_type`.

    Raises:
        ValueError: it says nothing of a model.
        OSError: the folder is missing or holds no model.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder}/config.json is no JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError(f"{folder}/config.json has no model_type: it is no model as transformers saves it")
    return config


def load_published(kind: type[M], folder: Path) -> M:
    """Load a folder's model, float32, without network.

    Raises:
        ValueError: it is of another kind, or some of its weights are missing.
        OSError: the folder is missing or holds no model.
    """
    found, wanted = read_config(folder)["model_type"], _whole(kind)
    if found != wanted:
        raise ValueError(f"{folder} holds a {found}, where a {wanted} is wanted")
    options: dict[str, Any] = {"local_files_only": True, "output_loading_info": True}
    loaded: Any = kind.from_pretrained(folder, dtype=torch.float32, **options)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights of its {wanted}, {missing[0]} for one")
    return model


def _whole(kind: type[PreTrainedModel]) -> str:
    """Return the `model_type` of the folders that a model is loaded from; CLIP's towers lie in one."""
    name: str = getattr(kind.config_class, "model_type", "")
    return "clip" if name.startswith("clip_") else name
