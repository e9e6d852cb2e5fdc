"""What is kept of a folder that a real library saved: everything but the weights, which are drawn again."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file


def keep(folder: Path, output: Path, recorded: dict[str, Any]) -> None:
    """Write a golden folder anew, with what was recorded; the folder loses its weights."""
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    shapes = {key: list(value.shape) for key, value in load_file(weights).items()}
    weights.unlink()
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(folder, output, copy_function=shutil.copyfile)
    (output / "weights.json").write_text(json.dumps({"sha256": digest, "shapes": shapes}) + "\n")
    (output / "requests.json").write_text(json.dumps(recorded) + "\n")
