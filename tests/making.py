"""What tests make: archives around a handler's source, checkpoints of random weights, servers."""

import contextlib
import dataclasses
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch

from archive.read import Archive
from export.__main__ import main as export_command
from server.ports import free_port
from server.process import TorchServe
from vla import checkpoint
from vla.models import build, module_of
from vla_runtime.observation import Row
from vla_runtime.policy import Policy
from vla_runtime.preprocessing import normalise_pictures
from vla_runtime.spec import (
    Camera,
    ContinuousSpace,
    Dimension,
    Format,
    Precision,
    Safety,
    Statistics,
    Tokenizer,
    Vector,
)

# A worker imports torch; 2 busy cores take some seconds for it.
STARTUP_TIMEOUT_S = 120.0

ECHO = """
import json

def handle(data, ctx):
    return [json.dumps(sorted(row)).encode() for row in data or []] or None
"""

running: list[TorchServe] = []
# Makes an archive of a format and precision.
Exported = Callable[[Format, Precision], Path]


def write_archive(folder: Path, handler: str = ECHO, name: str = "echo") -> Path:
    """Write a real archive around a handler's source and return its path."""
    manifest = {
        "runtime": "python",
        "archiverVersion": "0.12.0",
        "model": {
            "modelName": name,
            "modelVersion": "1.0",
            "handler": "handler.py",
            "configFile": "model-config.yaml",
        },
    }
    path = folder / f"{name}.mar"
    with zipfile.ZipFile(path, "w") as mar:
        mar.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        mar.writestr("handler.py", handler)
        mar.writestr("model-config.yaml", "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\nmaxBatchDelay: 1\n")
    return path


@contextlib.contextmanager
def serve(*archives: Path, model_api: bool = False) -> Iterator[TorchServe]:
    """Serve archives on free ports; an exception in the meantime tells the end of the server's log.

    `model_api` lets further archives of its folder be `registered`.
    """
    with TorchServe(
        archives, port=free_port(), startup_timeout_s=STARTUP_TIMEOUT_S, model_api=model_api
    ) as server:
        running.append(server)
        try:
            yield server
        except Exception as error:
            error.add_note(server.log_tail(80))
            raise
        finally:
            running.remove(server)


@contextlib.contextmanager
def registered(server: TorchServe, archive: Path) -> Iterator[str]:
    """Have a server load one more archive of its folder; yields where requests are posted."""
    batches = {"batch_size": Archive.open(archive).largest_batch, "max_batch_delay": 1}
    asked = {"url": archive.name, "initial_workers": 1, "synchronous": "true", **batches}
    answer = requests.post(f"{server.management_url}/models", params=asked, timeout=STARTUP_TIMEOUT_S)
    assert answer.ok, answer.text
    try:
        yield f"{server.url}/predictions/{archive.stem}"
    finally:
        requests.delete(f"{server.management_url}/models/{archive.stem}", timeout=30)


def write_checkpoint(folder: Path, architecture: str = "command_attention", **model_values: Any) -> Path:
    """Write a real checkpoint with random weights: the architecture's tiny preset, two state dimensions.

    `model_values` replace those of the preset.
    """
    config = checkpoint.Config(
        name=f"tiny_{architecture}",
        architecture=architecture,
        model=dataclasses.asdict(module_of(architecture).Config.tiny()) | model_values,
        cameras=(Camera(name="front", width=96, height=96),),
        tokenizer=Tokenizer(file="tokenizer.json", context_length=77, pad_id=49407),
        state=vector(Vector, height=("m", 0.0, 0.5), gripper=("1", 0.0, 1.0)),
        action=vector(
            ContinuousSpace, delta_x=("m", -0.03, 0.03), gripper=("1", -1.0, 1.0), horizon=4, control_hz=10.0
        ),
        safety=Safety(),
        training={},
    )
    torch.manual_seed(0)
    model = build(architecture, config.model, config.sizes())
    # Fresh word vectors are zero, which would answer every command alike.
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), np.uint8)
    example = checkpoint.Frame(
        images=pixels, command="push the red block", state=np.array([0.1, 1.0], np.float32)
    )
    checkpoint.save(folder, config, model, example, {"seed": 0}, half=False)
    return folder


def eager_actions(policy: Policy, model: Any, row: Row) -> np.ndarray:
    """Compute one request with the model that was exported: float32 [T, A], physical units, in the bounds."""
    inputs, spec = policy.prepare(row), policy.spec
    pixels = np.stack([inputs.tensors[f"image.{camera.name}"] for camera in spec.cameras])
    pictures = normalise_pictures(torch.from_numpy(pixels)[None], spec.cameras)
    parts = (inputs.ids, inputs.mask, inputs.tensors["state"], inputs.tensors["noise"])
    ids, mask, state, noise = (torch.from_numpy(part)[None] for part in parts)
    with torch.inference_mode():
        answer = model.act(pictures, *model.encode_command(ids, mask), state, noise)
    space = spec.action
    assert isinstance(space, ContinuousSpace)
    actions = answer["actions"][0].numpy() * space.scale + space.shift
    return np.clip(actions, space.low, space.high)


def vector(kind: type[Vector], **fields: Any) -> Any:
    """Make a vector of dimensions name=(unit, low, high), normalised by its bounds."""
    named = {name: fields.pop(name) for name in list(fields) if isinstance(fields[name], tuple)}
    dimensions = tuple(
        Dimension(name=name, unit=u, low=low, high=high) for name, (u, low, high) in named.items()
    )
    low, high = tuple(d.low for d in dimensions), tuple(d.high for d in dimensions)
    middle = tuple((a + b) / 2 for a, b in zip(low, high, strict=True))
    statistics = Statistics(mean=middle, std=(1.0,) * len(low), q01=low, q99=high)
    return kind(dimensions=dimensions, normalisation="bounds", statistics=statistics, **fields)


def export_refused(message: str, *arguments: str, cwd: Path | None = None) -> None:
    """Run the export's command line in this process: it ends with one line, which begins as `message` says.

    A program that ends with a text has status 1, and the text on stderr.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(cwd or Path.cwd())
        with pytest.raises(SystemExit) as ended:
            export_command(arguments)
    said = ended.value.code
    assert isinstance(said, str)
    assert re.match(message, said), said
    assert len(said.splitlines()) == 1
