"""docs/your-own-policy.md, followed from a folder outside the repository: HTTP equals the module itself."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from making import STARTUP_TIMEOUT_S, export_refused
from PIL import Image

from export.find import find
from export.source import Source
from server.ports import free_port
from server.process import TorchServe
from vla_runtime.rotations import orthonormal_6d

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Source]:
    """The example, copied to where a user's code would lie, and exported by the page's first command."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(ROOT / "examples" / "own_policy", folder / "my_robot")
    page = (ROOT / "docs" / "your-own-policy.md").read_text()
    command = re.search(r"^python (-m export .*)$", page, re.MULTILINE)
    assert command
    arguments = (
        command[1].replace("examples/own_policy", "my_robot").replace("model_store", str(folder)).split()
    )
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "verified at batch sizes [1, 3, 32]" in done.stdout
    return folder / "mine.mar", find(f"{folder}/my_robot/policy.py:make")


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def expected(source: Source, front: np.ndarray, wrist: np.ndarray, words: list[int]) -> np.ndarray:
    """Compute what the module answers, by its own preprocessing: pictures arrive at the policy's own size."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (source.cameras[0].mean, source.cameras[0].std))
    images = {
        "front": ((torch.tensor(front).permute(2, 0, 1) / 255 - mean) / std)[None],
        "wrist": (torch.tensor(wrist).permute(2, 0, 1) / 127.5 - 1)[None],
    }
    ids = torch.tensor([words + [0] * (12 - len(words))])
    model: Any = source.model
    with torch.inference_mode():
        command = model.encode_command(ids, (torch.arange(12) < len(words)).long()[None])
        raw = model.act(images, command, torch.zeros(1, 0), torch.zeros(1, 0))["actions"][0].numpy()
    actions = raw * ([0.04] * 3 + [1.0] * 7)
    actions[:, 3:9] = orthonormal_6d(actions[:, 3:9])
    return np.clip(actions, [-0.05] * 3 + [-1.5] * 6 + [-1.0], [0.05] * 3 + [1.5] * 6 + [1.0])


def test_http_equals_the_module(own: tuple[Path, Source]) -> None:
    archive, source = own
    random = np.random.default_rng(0)
    with TorchServe(archive, port=free_port(), startup_timeout_s=STARTUP_TIMEOUT_S) as server:
        for command, words in (("push the red cup", [3, 5, 8, 6]), ("open the blue drawer", [4, 5, 9, 7])):
            front = random.integers(0, 256, (224, 224, 3), np.uint8)
            wrist = random.integers(0, 256, (96, 128, 3), np.uint8)
            files = {"image.front": png(front), "image.wrist": png(wrist)}
            answer = requests.post(
                f"{server.url}/predictions/mine", files=files, data={"command": command}, timeout=30
            )
            assert answer.status_code == 200, answer.text
            difference = np.abs(np.array(answer.json()["actions"]) - expected(source, front, wrist, words))
            assert difference.max() <= 1e-4
        refused = requests.post(f"{server.url}/predictions/mine", files={"image": png(front)}, timeout=30)
        assert (refused.status_code, refused.json()["error"]["field"]) == (400, "image")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("policy.pt", r"^export refused: .*policy\.pt looks like weights alone"),
        ("empty", r"^export refused: .*empty has no config\.json \(it has: nothing\)"),
        ("hugging_face", r"^export refused: .*looks like a Hugging Face model \(clip\)"),
        ("lerobot", r"^export refused: .*looks like a LeRobot policy of type 'act'"),
        ("policy.py", r"^export refused: .*is a Python file: name the function in it .*policy\.py:make"),
        ("policy.py:none", r"^export refused: .* has no function 'none'; it defines: make"),
        ("policy.py:make", r"^export refused: .*must return an export\.source\.Source, got int"),
        ("nothing", r"^export refused: there is nothing at .*nothing"),
    ],
)
def test_what_is_no_policy_is_told_what_it_looks_like(tmp_path: Path, made: str, message: str) -> None:
    (tmp_path / "policy.pt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name, config in (
        ("hugging_face", '{"model_type": "clip"}'),
        ("lerobot", '{"type": "act", "input_features": {}}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    (tmp_path / "policy.py").write_text("def make():\n    return 1\n")

    export_refused(message, str(tmp_path / made), "--output", str(tmp_path / "out.mar"))

    assert not (tmp_path / "out.mar").exists()


def test_a_refusal_is_one_line_and_status_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export", tmp_path / "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 1
    assert re.fullmatch(r"export refused: there is nothing at .*nothing.*\n", done.stderr), done.stderr
