"""Policies of the real LeRobot, imported by one command: HTTP equals what the library computed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from golden.drawn import picture
from golden.folders import TOKENIZER, rebuilt, recorded
from making import STARTUP_TIMEOUT_S, running
from sources import png

from server.ports import free_port
from server.process import TorchServe

# Policies, and what is said of them besides.
POLICIES: dict[str, tuple[object, ...]] = {
    "act": (),
    "act_min_max": (),
    "diffusion": (),
    "diffusion_ddpm": (),
    "pi0": ("--tokenizer", TOKENIZER),
    "pi0_one_camera": ("--tokenizer", TOKENIZER, "--format", "eager"),
}


def imported(name: str, folder: Path) -> Path:
    """Export a golden folder by the command that docs/import.md shows."""
    golden, output = rebuilt(name, folder), folder / f"{name}.mar"
    arguments = ["--from", "lerobot", golden, "--names", golden / "meta" / "info.json", "--margin", "2"]
    arguments += [*POLICIES[name], "--buckets", "1", "2", "4", "--output", output]
    done = subprocess.run(
        [sys.executable, "-m", "export", *map(str, arguments)],
        # So small a policy is traced sooner by one thread, on a busy machine by far.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    folder = tmp_path_factory.mktemp("lerobot")
    with ThreadPoolExecutor(2) as pool:
        archives = list(pool.map(lambda name: imported(name, folder), POLICIES))
    with TorchServe(archives, port=free_port(), startup_timeout_s=2 * STARTUP_TIMEOUT_S) as server:
        running.append(server)
        yield server
        running.remove(server)


def body(sizes: dict[str, Any], request: dict[str, Any]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return a request as a robot sends it: with two steps or more, every field once a step."""
    files, steps = {}, request["steps"]
    for place, step in enumerate(steps):
        for key, seed in step["pictures"].items():
            field = key.replace("observation.images.", "image.").replace("observation.", "")
            file = png(picture(seed, *sizes[key]))
            files[field if len(steps) == 1 else f"{field}.{place}"] = file
    states = [step["state"] for step in steps]
    state = states[0] if len(steps) == 1 else states
    told = {"command": request["command"]} if "command" in request else {}
    return files, told | {"state": json.dumps(state), "seed": str(request["seed"])}


def difference(answer: requests.Response, request: dict[str, Any], golden: dict[str, Any]) -> float:
    """Return the largest difference from the library's actions, as a share of the training data's range."""
    assert answer.status_code == 200, answer.text
    assert answer.json()["safety"]["status"] == "ok"
    expected, got = np.array(request["actions"]), np.array(answer.json()["actions"])
    assert got.shape == expected.shape
    return float((np.abs(got - expected) / golden["range"]).max())


@pytest.mark.parametrize("name", POLICIES)
def test_http_equals_the_library_alone_and_in_a_batch(server: TorchServe, name: str) -> None:
    golden = recorded(name)
    bodies = [body(golden["sizes"], request) for request in golden["requests"]]

    def ask(files: dict[str, bytes], data: dict[str, str]) -> requests.Response:
        return requests.post(f"{server.url}/predictions/{name}", files=files, data=data, timeout=60)

    alone = [ask(*one) for one in bodies]
    with ThreadPoolExecutor(12) as pool:
        many = [pool.submit(ask, *one) for _ in range(3) for one in bodies]
        together = [future.result() for future in many]

    assert max(answer.json()["timing_ms"]["batch_size"] for answer in together) > 1
    pairs = zip([*alone, *together], golden["requests"] * 4, strict=True)
    assert max(difference(*pair, golden) for pair in pairs) <= 1e-4
    actions = np.array([request["actions"] for request in golden["requests"]])
    assert (np.ptp(actions, axis=0) / golden["range"]).max() > 0.1, (
        "the requests must differ in their answers"
    )


def test_the_policy_says_where_it_comes_from(server: TorchServe) -> None:
    described = requests.get(f"{server.management_url}/models/act?customized=true", timeout=30)
    spec = described.json()[0]["customizedMetadata"]

    assert spec["action"]["dimensions"][5]["name"] == "gripper.pos"
    assert spec["action"]["control_hz"] == 30
    assert [camera["name"] for camera in spec["cameras"]] == ["front", "wrist"]
    found = spec["provenance"]["imported"]
    assert (found["from"], found["type"]) == ("lerobot", "act")
    assert "policy_preprocessor.json" in found["sha256"]
    wrong = requests.post(
        f"{server.url}/predictions/act",
        files={"image.front": png(picture(0, 64, 96)), "image.wrist": png(picture(0, 96, 64))},
        data={"state": "[0, 0, 0, 0, 0, 0]"},
        timeout=30,
    )
    assert (wrong.status_code, wrong.json()["error"]["field"]) == (422, "image.wrist")
