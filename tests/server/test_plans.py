"""A policy that plans: exported, archived and served, its plan arrives as labels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from making import serve, write_checkpoint
from PIL import Image

from archive.read import unpack
from export.export import Options, export
from vla.workbench.commands import LONGEST, SKILLS, STEPS
from vla_client import Observation, RemotePolicy
from vla_runtime.policy import Answer, Policy
from vla_runtime.spec import Format

COMMANDS = ("put the red block into the drawer", "open the drawer", "stack the blue block on the green one")


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def exported(folder: Path, format_: Format) -> Path:
    steps = tuple(map(str, STEPS))
    made = write_checkpoint(
        folder / "checkpoint", "hierarchical", skills=SKILLS, steps=steps, longest=LONGEST
    )
    export(Options(str(made), folder / "planner.mar", buckets=(1, 2, 4), format=format_))
    return folder / "planner.mar"


def planned(policy: Policy, count: int) -> list[dict[str, Any]]:
    """Return the extras of a batch of `count` requests."""
    rows = [{"image": png(each), "command": COMMANDS[each], "state": [0.1, 0.5]} for each in range(count)]
    answers = policy.infer(rows)
    assert all(isinstance(answer, Answer) for answer in answers)
    return [answer.chunk.extras for answer in answers if isinstance(answer, Answer)]


@pytest.mark.parametrize("format_", ["torchscript", pytest.param("pt2", marks=pytest.mark.slow)])
def test_plans_arrive_as_labels_over_http(tmp_path: Path, format_: Format) -> None:
    archive = exported(tmp_path, format_)
    policy = Policy.load(unpack(archive, tmp_path / "unpacked"))
    assert policy.spec.artifact.extras["plan"].labels == tuple(map(str, STEPS))
    together = planned(policy, 3)
    assert together[0]["plan"] == planned(policy, 1)[0]["plan"], "a row's plan depends on its batch"
    assert len({str(extras["plan_probability"]) for extras in together}) == 3
    with serve(archive) as server:
        for each, command in enumerate(COMMANDS):
            answer = requests.post(
                f"{server.url}/predictions/planner",
                files={"image": png(each)},
                data={"command": command, "state": "[0.1, 0.5]"},
                timeout=30,
            )
            assert answer.status_code == 200
            extras = answer.json()["extras"]
            assert extras["plan"] == together[each]["plan"]
            assert extras["plan_probability"] == pytest.approx(together[each]["plan_probability"], abs=1e-4)
            assert len(extras["plan"]) == len(extras["plan_probability"]) == LONGEST
            assert all(step["name"] == str(STEPS[step["index"]]) for step in extras["plan"])
            assert extras["skill"]["name"] == STEPS[extras["plan"][0]["index"]].skill
        observed = Observation(png(0), COMMANDS[0], np.array([0.1, 0.5]))
        with RemotePolicy(server.url, model="planner") as remote:
            assert remote.infer(observed).extras["plan"] == together[0]["plan"]
