"""The policies of random weights that are measured, as archives."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch

from bench.gpu.policies import BUCKETS, ROOT, of_architecture, of_size
from export.export import Options, archived
from export.source import Source
from vla_runtime.spec import Precision

# What decides how a random policy is made: when it changes, the archive is made anew.
SOURCES = ("bench/policies.py", "bench/gpu/policies.py", "export", "handlers", "vla/models")

Name = Literal["tiny", "clip_b32", "clip_3b"]
RANDOM: dict[Name, Callable[[], Source]] = {
    "tiny": lambda: of_architecture("command_attention"),
    "clip_b32": lambda: of_size("ViT-B/32"),
    "clip_3b": lambda: of_size("3 billion"),
}


def random_archive(folder: Path, name: Name, precision: Precision) -> Path:
    """Export a policy of RANDOM for this machine, or return it where the same code has made it already.

    Returns:
        the archive's path in `folder`
    """
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    digest = hashlib.sha256(f"{name} {precision} {device}".encode())
    for file in _sources():
        digest.update(file.read_bytes())
    output, made_by = folder / f"{name}.mar", folder / f"{name}.sha256"
    if not (output.is_file() and made_by.is_file() and made_by.read_text() == digest.hexdigest()):
        options = Options("random weights", output, buckets=BUCKETS, precision=precision, device=device)
        archived(dataclasses.replace(RANDOM[name](), name=name), options)
        made_by.write_text(digest.hexdigest())
    return output


def _sources() -> Iterator[Path]:
    for place in SOURCES:
        path = ROOT / place
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]
