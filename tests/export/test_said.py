"""The text of `rt2` is the same whatever format computes it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import write_checkpoint
from sources import png

from archive.read import unpack
from export.export import Options, archived
from export.native import make
from vla_runtime.policy import Answer, Policy
from vla_runtime.spec import Format

PIECES = ("", " a", " b", " c", " d", " e", " f", " g", " h")
COMMANDS = ("push", "is the red block left of the green one?", "go", "lift the blue cube")


def texts(checkpoint: Path, format_: Format, folder: Path) -> list[str]:
    """Export, and return what is said to commands, answered as one batch."""
    archived(make(checkpoint), Options("a test", folder / f"{format_}.mar", buckets=(1, 4), format=format_))
    policy = Policy.load(unpack(folder / f"{format_}.mar", folder / format_))
    pixels = np.random.default_rng(3).integers(0, 256, (96, 96, 3), np.uint8)
    asked: list[dict[str, Any]] = [
        {"image": png(pixels), "command": command, "state": "[0.1, 1.0]"} for command in COMMANDS
    ]
    found = policy.infer(asked)
    assert all(isinstance(answer, Answer) for answer in found), found
    return [answer.chunk.extras["text"] for answer in found if isinstance(answer, Answer)]


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "pt2", "eager"])
def test_a_text_is_the_same_in_every_format(format_: Format, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "rt2", pieces=PIECES, text_tokens=5)
    expected = texts(checkpoint, "torchscript", tmp_path)
    assert len(set(expected)) > 1
    assert texts(checkpoint, format_, tmp_path) == expected
