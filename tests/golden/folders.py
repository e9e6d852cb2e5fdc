"""Golden folders as a user has them: the recorded files, and the weights drawn again, byte for byte."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from golden.drawn import weight
from safetensors.torch import save_file

HERE = Path(__file__).parent


def rebuilt(name: str, parent: Path) -> Path:
    """Write the policy's folder below `parent` as the library saved it, and return it."""
    folder = parent / name
    shutil.copytree(HERE / name, folder)
    recorded = json.loads((folder / "weights.json").read_text())
    for file in ("weights.json", "requests.json"):
        (folder / file).unlink()
    weights = {key: torch.from_numpy(weight(key, tuple(shape))) for key, shape in recorded["shapes"].items()}
    save_file(weights, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == recorded["sha256"], f"{name}: the weights are not those that the library answered with"
    return folder


def recorded(name: str) -> dict[str, Any]:
    """Return the recorded requests, and the library's actions."""
    return json.loads((HERE / name / "requests.json").read_text())
