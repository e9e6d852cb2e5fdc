"""Golden folders as a user has them: the recorded files, and the weights drawn again, byte for byte."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from golden.drawn import weight
from safetensors.torch import load_file, save_file

from export.find import find
from export.foreign.facts import Facts
from export.source import Source

HERE = Path(__file__).parent
# Reads the commands of every golden pi0.
TOKENIZER = HERE / "paligemma" / "tokenizer.json"
# Reads those of every golden SmolVLA, and the rest of what is said of its vision-language model.
SMOLVLM = HERE / "smolvlm"


def rebuilt(name: str, parent: Path) -> Path:
    """Write the policy's folder below `parent` as the library saved it, and return it."""
    folder = parent / name
    shutil.copytree(HERE / name, folder)
    if (folder / "params").is_dir():  # of JAX, whose weights are kept as they were saved
        (folder / "requests.json").unlink()
        return folder
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


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change one of a folder's files in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change a folder's weights in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def read_pi(folder: Path, tokenizer: Path | None = TOKENIZER, **facts: Any) -> Source:
    """Read the folder of a golden pi0, pi0.5 or SmolVLA, with its names."""
    told: dict[str, Any] = {"names": folder / "meta" / "info.json", "margin": 1.0, "tokenizer": tokenizer}
    return find(str(folder), Facts(origin="lerobot", **told | facts))
