"""Every architecture in every format: the archive answers as its model does, alone, in batches, over HTTP.

A new name in `vla.models.ARCHITECTURES` is tested here without another line.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from making import eager_actions, registered, serve, write_archive, write_checkpoint
from PIL import Image

from archive.read import unpack
from export.export import Options, export
from server.process import TorchServe
from vla import checkpoint
from vla.models import ARCHITECTURES
from vla_runtime.policy import Answer, Policy
from vla_runtime.spec import ContinuousSpace, Format

# What transformers warns of its own properties when a trace looks inside its models.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
BUCKETS = (1, 2, 8)
# Normalised: what a format may lose in float32.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """A checkpoint of random weights and its archive."""

    checkpoint: Path
    archive: Path
    policy: Policy


# Served by every `make test`, the others by `make test-all`: one that is plain, one that finds boxes, one of
# transformers' modules, one that chooses among bins, one that reads noise.
SERVED = ("command_attention", "grounded", "clip", "rt2", "flow")


def cases(quick: Sequence[str]) -> list[object]:
    """Return (architecture, format) of all; but for TorchScript of those named they are marked as slow.

    A .pt2 takes tens of seconds; `tests/export/test_formats.py` loads one in any case, without a server.
    """
    usual = [(name, "torchscript") for name in quick]
    every = [(name, format_) for format_ in ("torchscript", "pt2") for name in ARCHITECTURES]
    return [
        pytest.param(case, id="-".join(case), marks=() if case in usual else pytest.mark.slow)
        for case in every
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A server that every archive is loaded into in turn; it starts with another one."""
    with serve(write_archive(tmp_path_factory.mktemp("store")), model_api=True) as server:
        yield server


@pytest.fixture(scope="module")
def exported(
    request: pytest.FixtureRequest, server: TorchServe, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """One architecture in one format."""
    architecture: str
    format_: Format
    architecture, format_ = request.param
    name = f"{architecture}_{format_}"
    folder = tmp_path_factory.mktemp(name)
    made_from = write_checkpoint(folder / "checkpoint", architecture)
    archive = server.archive.path.with_name(f"{name}.mar")
    export(Options(str(made_from), archive, buckets=BUCKETS, format=format_))
    return Exported(made_from, archive, Policy.load(unpack(archive, folder / "unpacked")))


def requests_of(count: int) -> list[dict[str, Any]]:
    """Return requests that differ in picture, command, state and seed, as the example's policy takes them."""
    commands = ("push the red block", "lift it", "reach the green cube", "go", "please grab the yellow one")
    return [
        {
            "image": png(seed),
            "command": commands[seed % len(commands)],
            "state": json.dumps([0.05 * seed, 0.5]),
            "seed": str(seed),
        }
        for seed in range(count)
    ]


def png(seed: int) -> bytes:
    """Draw a picture."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (96, 96, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def scale(policy: Policy) -> np.ndarray:
    """Return what normalisation divides the actions by: float32 [A]."""
    space = policy.spec.action
    assert isinstance(space, ContinuousSpace)
    return space.scale


def answers(policy: Policy, asked: list[dict[str, Any]]) -> list[Answer]:
    """Answer requests as one batch."""
    found = policy.infer(asked)
    assert all(isinstance(answer, Answer) for answer in found), found
    return [answer for answer in found if isinstance(answer, Answer)]


@pytest.mark.parametrize("exported", cases(ARCHITECTURES), indirect=True)
def test_archive_answers_as_the_model_alone_and_in_batches(exported: Exported) -> None:
    _, model = checkpoint.load(exported.checkpoint)
    asked = requests_of(BUCKETS[-1])
    expected = np.stack([eager_actions(exported.policy, model, row) for row in asked])

    for count in (1, 3, BUCKETS[-1]):
        got = np.stack([answer.chunk.actions for answer in answers(exported.policy, asked[:count])])
        difference = np.abs(got - expected[:count]) / scale(exported.policy)
        assert difference.max() <= TOLERANCE
    assert np.ptp(expected, axis=0).max() > 1e-3  # the requests are told apart


@pytest.mark.parametrize("exported", cases(SERVED), indirect=True)
def test_server_answers_as_the_policy_in_process(exported: Exported, server: TorchServe) -> None:
    asked = requests_of(3)[-1]
    (expected,) = answers(exported.policy, [asked])
    files = {name: (name, value) if name == "image" else (None, value) for name, value in asked.items()}

    with registered(server, exported.archive) as url:
        answer = requests.post(url, files=files, timeout=60)

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["policy"] == exported.policy.spec.name
    difference = np.abs(np.array(body["actions"]) - expected.chunk.actions) / scale(exported.policy)
    assert difference.max() <= TOLERANCE
    assert body.get("extras", {}).keys() == (expected.chunk.extras or {}).keys()
