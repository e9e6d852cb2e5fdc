"""Export: what is archived is what was checked, and a bad trace or checkpoint is refused."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from export.batch import Layout
from export.errors import ExportError
from export.target import Target
from export.trace import trace
from export.verify import Parity, verify
from vla import checkpoint
from vla_runtime.images import Limits
from vla_runtime.policy import Answer, Policy
from vla_runtime.spec import Camera, ContinuousSpace, PolicySpec

ROOT = Path(__file__).parents[2]
LAYOUT = Layout(
    cameras=(Camera(name="front", width=8, height=8),),
    inputs=("images", "command.command", "command.command_mask", "state", "noise"),
    command=("command", "command_mask"),
    horizon=3,
    action=2,
    context_length=6,
    vocabulary=50,
    state=2,
)
TARGET = Target(largest_batch=8)


class Sound(nn.Module):
    """The smallest module of the common signature."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(LAYOUT.vocabulary, 4)
        self.head = nn.Linear(4 + 3 + LAYOUT.state, LAYOUT.horizon * LAYOUT.action)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.words(input_ids), attention_mask.bool()

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        images, command, command_mask, state, _ = inputs
        said = (command * command_mask.unsqueeze(-1)).sum(1)
        features = torch.cat([self.see(images), said, state], -1)
        return {"actions": self.head(features).unflatten(-1, (LAYOUT.horizon, LAYOUT.action))}

    def see(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 3, 4))


class BakedBatchSize(Sound):
    """Repeats a learned row as often as the traced batch was large."""

    def see(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 3) + 0 * images.mean()


class BakedReshape(Sound):
    """Folds the batch into the features with the traced batch's size."""

    def see(self, images: Tensor) -> Tensor:
        return (
            images.mean(dim=(1, 3, 4))
            .reshape(int(images.shape[0]) * 3)
            .reshape(-1, int(images.shape[0]), 3)[0]
        )


class FrozenBranch(Sound):
    """Takes a branch that depends on the picture; the trace keeps the one that it happened to take."""

    def see(self, images: Tensor) -> Tensor:
        seen = super().see(images)
        return seen if images.sum() > torch.inf else -seen if images[0, 0, 0, 0, 0] > 0 else seen


class FrozenLoop(Sound):
    """Loops over the rows in Python."""

    def see(self, images: Tensor) -> Tensor:
        return torch.stack([image.mean(dim=(0, 2, 3)) for image in images])


class NotFinite(Sound):
    """Divides by zero."""

    def see(self, images: Tensor) -> Tensor:
        return super().see(images) / 0


def check(model: Sound, path: Path) -> Parity:
    trace(model.eval(), LAYOUT, path, TARGET)
    return verify(model, torch.jit.load(str(path)), LAYOUT, TARGET, tolerance=1e-4)


def test_sound_module_passes(tmp_path: Path) -> None:
    parity = check(Sound(), tmp_path / "policy.ts")

    assert parity.batch_sizes == (1, 3, 8)
    assert parity.largest["actions"] < 1e-6


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            BakedBatchSize,
            r"^the artifact was traced at batch size 2 and fails at 1: its batch size is baked in",
        ),
        (
            BakedReshape,
            r"^the artifact was traced at batch size 2 and fails at 1: its batch size is baked in",
        ),
        (FrozenLoop, r"^the artifact was traced at batch size 2 and fails at 1: its batch size is baked in"),
        (
            FrozenBranch,
            r"^the artifact's actions differs from the model's by .* The export froze something: ",
        ),
        (NotFinite, r"^at batch size 1 the artifact returns values that are not finite"),
    ],
)
def test_bad_trace_is_refused(tmp_path: Path, bad: type[Sound], message: str) -> None:
    torch.manual_seed(0)

    with pytest.raises(ExportError, match=message):
        check(bad(), tmp_path / "policy.ts")


def test_wrong_chunk_is_refused(tmp_path: Path) -> None:
    class Short(Sound):
        def act(self, *inputs: Tensor) -> dict[str, Tensor]:
            return {"actions": super().act(*inputs)["actions"][:, :2]}

    with pytest.raises(
        ExportError, match=r"returns \{'actions': \[1, 2, 2\]\} instead of \{'actions': \[1, 3, 2\]\}"
    ):
        check(Short(), tmp_path / "policy.ts")


def test_archive_describes_itself(tiny_folder: Path, tiny_checkpoint: Path) -> None:
    spec = PolicySpec.load(tiny_folder)
    weights = hashlib.sha256((tiny_checkpoint / "model.safetensors").read_bytes()).hexdigest()

    assert spec.provenance["checkpoint_sha256"]["model.safetensors"] == weights
    assert isinstance(spec.action, ContinuousSpace)
    assert spec.provenance["statistics_sha256"]["action"] == spec.action.statistics.sha256()
    assert spec.provenance["parity"]["largest_difference"] <= 1e-4
    assert spec.provenance["versions"]["torch"] == importlib.metadata.version("torch")
    assert spec.artifact.outputs == ("actions", "attention")
    manifest = json.loads((tiny_folder / "MAR-INF" / "MANIFEST.json").read_text())
    assert manifest["model"]["handler"] == "vla_handler.py"
    config = yaml.safe_load((tiny_folder / "model-config.yaml").read_text())
    assert manifest["model"]["largestBatch"] == 8
    assert config["minWorkers"] == 1
    assert "batchSize" not in config
    assert config["handler"] == {"workers": 1, **vars(Limits())}


def test_archive_answers_as_the_eager_checkpoint(tiny_folder: Path, tiny_checkpoint: Path) -> None:
    """From the request's bytes to physical units, beside the model computed by hand."""
    model: Any
    config, model = checkpoint.load(tiny_checkpoint)
    policy = Policy.load(tiny_folder)
    request = policy.example_row(tiny_folder)
    inputs = policy.prepare(request)
    camera = config.cameras[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (camera.mean, camera.std))
    images = (torch.tensor(inputs.tensors["image.front"])[None] / 255 - mean) / std
    with torch.no_grad():
        command = model.encode_command(torch.tensor(inputs.ids)[None], torch.tensor(inputs.mask)[None])
        state = torch.tensor([[0.1 / 0.25 - 1, 1.0]])
        raw = model.act(images[None], *command, state, torch.zeros(1, 0, 0))["actions"][0].numpy()
    expected = np.clip(raw * [0.03, 1.0], [-0.03, -1], [0.03, 1])

    answer = policy.infer([request])[0]

    assert isinstance(answer, Answer)
    np.testing.assert_allclose(answer.chunk.actions, expected, atol=1e-5)


def test_equal_bytes_from_two_checkouts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A digest names an archive: nothing in it depends on when it was made, or where the sources lie."""
    checkout = tmp_path / "another" / "checkout"
    for folder in ("archive", "export", "handlers", "vla"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    archives = [tmp_path / "one" / "vla.mar", tmp_path / "two" / "vla.mar"]

    done = [
        subprocess.run(
            [sys.executable, "-m", "export", str(tiny_checkpoint), "--output", str(archive)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": f"{folder}:{folder / 'handlers'}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for folder, archive in zip((ROOT, checkout), archives, strict=True)
    ]

    assert [process.returncode for process in done] == [0, 0], done[1].stderr
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with zipfile.ZipFile(archives[0]) as packed, packed.open("policy.ts") as artifact:
        assert str(ROOT).encode() not in artifact.read()


ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import json, pathlib, types
import torch
from ts.context import Context
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from vla_handler import VlaHandler
import vla_runtime
assert pathlib.Path(vla_runtime.__file__).is_relative_to(sys.argv[1]), vla_runtime.__file__
context = Context("vla", sys.argv[1], {}, 8, None, None, limit_max_image_pixels=True)
pathlib.Path("metrics.yaml").write_text("{}")
context.metrics = MetricsCacheYamlImpl("metrics.yaml")
handler = VlaHandler()
handler.initialize(context)
context.request_ids = {0: "r0", 1: "r1"}
context._request_processor = []
ours = [name for name in ("vla", "export", "vla_client", "server") if name in sys.modules]
print(json.dumps({"version": handler.policy.spec.version, "ours": ours}))
"""


def test_archive_alone_is_enough(tiny_folder: Path, tmp_path: Path) -> None:
    """A clean interpreter in another folder sees third-party packages and the archive, nothing of ours."""
    finder = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if '__editable__' not in str(f)]\n"
        f"sys.path = [p for p in sys.path if not p.startswith({str(ROOT)!r}) or 'site-packages' in p]\n"
    )
    script = tmp_path / "alone.py"
    script.write_text(finder + ALONE)
    probe = finder + "import vla_runtime"
    assert subprocess.run(
        [sys.executable, "-c", probe], cwd=tmp_path, check=False, capture_output=True
    ).returncode

    done = subprocess.run(
        [sys.executable, script, tiny_folder],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"version": "1.0", "ours": []}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "export refused: "),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "export refused: model.safetensors is missing in ",
        ),
        (
            lambda folder: edit(folder, "action", "statistics"),
            "export refused: config.json: Object missing required field `statistics` - at `$.action`",
        ),
        (
            lambda folder: edit(folder, "cameras"),
            "export refused: config.json: Object missing required field `cameras`",
        ),
        (
            lambda folder: edit(folder, "action", "dimensions"),
            "export refused: config.json: Object missing required field `dimensions` - at `$.action`",
        ),
    ],
)
def test_incomplete_checkpoint_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, break_it: Callable[[Path], None], message: str
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    break_it(folder)

    done = run(folder, "--output", tmp_path / "vla.mar")

    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.mar"))


def edit(folder: Path, *keys: str) -> None:
    """Delete one entry of `config.json`."""
    config = json.loads((folder / "config.json").read_text())
    part = config
    for key in keys[:-1]:
        part = part[key]
    del part[keys[-1]]
    (folder / "config.json").write_text(json.dumps(config))
