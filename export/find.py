"""Turns what a user names on the command line into a `Source`, or says what it looks like instead."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.foreign.facts import Facts
from export.source import Source
from vla_runtime.spec import Precision

GUIDE = "docs/your-own-policy.md says how a policy becomes a source"
WEIGHTS = {".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".ts", ".pkl", ".npz"}


def find(name: str, facts: Facts | None = None, precision: Precision = "float32") -> Source:
    """Return the source of `policy.py:make`, of a checkpoint of ours, or, with `facts`, of a foreign folder.

    Of a foreign one that is large the weights are kept in `precision` from the start.

    Raises:
        ExportError: it is neither; the message says what it looks like, and what takes it.
        SpecError: the source contradicts itself.
    """
    if facts and facts.origin:
        return _foreign(Path(name).expanduser(), facts, precision)
    name = str(Path(name).expanduser())
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _call(Path(path), function)
    found = Path(name)
    if not found.exists():
        raise ExportError(f"there is nothing at {found}: name a checkpoint's folder, or policy.py:make")
    if found.is_file():
        raise ExportError(_of_file(found))
    _check_folder(found)
    from export.native import make  # noqa: PLC0415 - the one module that knows `vla`

    return make(found, facts)


def _foreign(folder: Path, facts: Facts, precision: Precision) -> Source:
    """Read another library's folder, and print what its user should know of the result."""
    facts, inside = _told(facts), folder / "pretrained_model"
    if not folder.is_dir():
        raise ExportError(f"there is no folder {folder}: name the one with config.json and model.safetensors")
    if inside.is_dir() and not (folder / "config.json").is_file():
        raise ExportError(f"{folder} has no config.json, and a folder {inside.name}: name {inside}")
    from export import lerobot, openpi  # noqa: PLC0415 - only where they are asked for
    from export.foreign import sentencepiece  # noqa: PLC0415

    if facts.tokenizer and facts.tokenizer.suffix == sentencepiece.SUFFIX:
        facts = replace(facts, tokenizer=sentencepiece.as_json(facts.tokenizer))
    source = {"lerobot": lerobot.make, "openpi": openpi.make}[facts.origin or ""](folder, facts, precision)
    for note in source.provenance["imported"]["notes"]:
        print(f"note: {note}", flush=True)
    return source


def _told(facts: Facts) -> Facts:
    """Return what was told, its paths below the home folder where they begin with `~`, checked for sense."""
    if facts.margin is not None and not 0 <= facts.margin < math.inf:
        raise ExportError(f"--margin is a share of a range, 0 at least, got {facts.margin}")
    if facts.denoising_steps is not None and facts.denoising_steps < 1:
        raise ExportError(f"denoising steps must be 1 at least, got {facts.denoising_steps}")
    names, words, vlm = (path and path.expanduser() for path in (facts.names, facts.tokenizer, facts.vlm))
    return replace(facts, names=names, tokenizer=words, vlm=vlm)


def _of_file(path: Path) -> str:
    if path.suffix == ".py":
        return f"{path} is a Python file: name the function in it that returns a Source, as {path}:make"
    if path.suffix == ".mar":
        return f"{path} is an archive already: `python -m server --archive {path}` serves it"
    if path.suffix in WEIGHTS:
        return (
            f"{path} looks like weights alone, which say neither what computes them nor what their numbers "
            f"mean: load them in a policy.py with a function make() and export policy.py:make; {GUIDE}"
        )
    return f"{path} is no checkpoint: name a checkpoint's folder, or policy.py:make; {GUIDE}"


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is not one of our checkpoints."""
    path = folder / "config.json"
    if not path.is_file():
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
        raise ExportError(f"{folder} has no config.json (it has: {inside}): it is no checkpoint; {GUIDE}")
    try:
        config: Any = json.loads(path.read_text())
    except ValueError as error:
        raise ExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ExportError(f"{path} holds no object: it is no checkpoint's")
    if "input_features" in config or (folder / "policy_preprocessor.json").is_file():
        raise ExportError(
            f"{folder} looks like a LeRobot policy of type {config.get('type')!r}: python -m export "
            f"--from lerobot {folder} --names meta/info.json reads it, as docs/import.md shows"
        )
    if "action_horizon" in config and "paligemma_variant" in config:
        raise ExportError(
            f"{folder} looks like a pi0 or pi0.5 of openpi's: python -m export --from openpi {folder} "
            "--robot aloha --names names.json reads it, as docs/import.md shows"
        )
    if "model_type" in config or "architectures" in config:
        kind = config.get("model_type") or config["architectures"]
        raise ExportError(
            f"{folder} looks like a Hugging Face model ({kind}): load it with from_pretrained in a policy.py "
            f"and export policy.py:make; {GUIDE}"
        )


def _call(path: Path, function: str) -> Source:
    if not path.is_file():
        raise ExportError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ExportError(f"{path} can't be imported as Python")
    module = importlib.util.module_from_spec(spec)
    # What lies beside the file can be imported by it, as when Python runs it.
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    make = getattr(module, function, None)
    if not callable(make):
        defined = ", ".join(name for name in vars(module) if not name.startswith("_"))
        raise ExportError(f"{path} has no function {function!r}; it defines: {defined}")
    source = make()
    if not isinstance(source, Source):
        raise ExportError(
            f"{path}:{function} must return an export.source.Source, got {type(source).__name__}; {GUIDE}"
        )
    return source
