"""Policies of the real LeRobot, imported by one command: HTTP equals what the library computed."""

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import requests
from golden.drawn import picture
from golden.folders import SMOLVLM, TOKENIZER, recorded
from golden.over_http import body, check_answers, imported, together
from sources import png

from loadtest import corpus
from server.process import TorchServe

VJP = ("--guidance", "vjp", "--max-delay", "2")
IDENTITY = ("--guidance", "identity", "--max-delay", "3")
# Policies, and what is said of them besides.
POLICIES: dict[str, tuple[object, ...]] = {
    "act": (),
    "act_min_max": (),
    "diffusion": (),
    "diffusion_ddpm": (),
    "pi0": ("--tokenizer", TOKENIZER),
    "pi0_one_camera": (
        "--tokenizer",
        TOKENIZER,
        "--format",
        "eager",
        "--guidance",
        "vjp",
        "--max-delay",
        "2",
    ),
    "pi05": ("--tokenizer", TOKENIZER),
    "smolvla": ("--tokenizer", SMOLVLM / "tokenizer.json", "--vlm", SMOLVLM / "config.json", *IDENTITY),
}


def exported(name: str, folder: Path) -> Path:
    return imported(name, "lerobot", "info.json", folder, "--margin", "2", *POLICIES[name])


@pytest.fixture(scope="module")
def server(policy_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """All of them, and the default policy, behind one server."""
    folder = tmp_path_factory.mktemp("lerobot")
    archives = [exported(name, folder) for name in POLICIES]
    with together([*archives, policy_archive]) as server:
        yield server


@pytest.mark.parametrize("name", POLICIES)
def test_http_equals_the_library_alone_and_in_a_batch(server: TorchServe, name: str) -> None:
    check_answers(server.url, name)


def test_a_guided_answer_goes_on_from_the_last_one(server: TorchServe) -> None:
    golden = recorded("smolvla")
    later, delay = golden["requests"][1:], golden["delay"]

    def ask(request: dict[str, Any], *, guided: bool) -> dict[str, Any]:
        files, data = body(golden["sizes"], request)
        left = {"previous": json.dumps(request["previous"]), "delay": str(delay)} if guided else {}
        answer = requests.post(f"{server.url}/predictions/smolvla", files=files, data=data | left, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    alone = [ask(request, guided=False)["actions"] for request in later]
    with ThreadPoolExecutor(12) as pool:  # guided ones beside others
        kinds = [(request, guided) for request in later for guided in (True, False)] * 2
        together = list(pool.map(lambda one: ask(one[0], guided=one[1]), kinds))

    for (request, guided), answer in zip(kinds, together, strict=True):
        expected = request["guided"] if guided else alone[later.index(request)]
        first = delay if guided else 0
        assert answer["delay"] == first
        assert np.allclose(answer["actions"][:first], request["previous"][:first], atol=1e-4)
        difference = np.abs(np.array(answer["actions"]) - expected)[first:] / golden["range"]
        assert difference.max() <= 1e-4


def test_a_policys_own_gradient_guides_an_eager_one(server: TorchServe) -> None:
    golden = recorded("pi0_one_camera")
    files, data = body(golden["sizes"], golden["requests"][0])
    url, left = f"{server.url}/predictions/pi0_one_camera", golden["requests"][1]["actions"][:2]

    given = {"previous": json.dumps(left), "delay": "2"}
    plain, guided = (
        requests.post(url, files=files, data=data | more, timeout=60).json() for more in ({}, given)
    )

    assert np.allclose(guided["actions"][:2], left, atol=1e-4)
    moved = np.abs(np.array(guided["actions"]) - plain["actions"])[2:] / golden["range"]
    assert moved.max() > 0.01


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


# Robots of each policy, what each of them sees in turn, and how often.
ROBOTS, VIEWS, ROUNDS = 8, 3, 10
# Pictures of the default policy's own scene: at others it holds, whatever it is asked.
FRAMES = sorted(corpus.FOLDER.glob("*.jpg"))


def views(policy: str, golden: dict[str, Any]) -> list[tuple[dict[str, bytes], dict[str, str]]]:
    """Return requests with pictures, a state and a command of their own: VIEWS for each of ROBOTS robots."""
    random = np.random.RandomState(len(policy))
    found = []
    for seed in range(1000, 1000 + ROBOTS * VIEWS):
        if policy == "act":
            pictures = {key: 2 * seed + place for place, key in enumerate(golden["sizes"])}
            state = (np.array(golden["range"]) * (random.rand(6) - 0.5)).tolist()
            found.append(
                body(golden["sizes"], {"steps": [{"pictures": pictures, "state": state}], "seed": 0})
            )
        else:
            state = random.uniform([-0.19, -0.19, 0.02, 0], [0.07, 0.19, 0.2, 1]).tolist()
            command = f"push the {('red', 'green', 'blue')[seed % 3]} block"
            frame = FRAMES[seed % len(FRAMES)].read_bytes()
            found.append(({"image": frame}, {"command": command, "state": json.dumps(state)}))
    return found


def test_robots_of_two_policies_behind_one_server_get_no_wrong_answer(server: TorchServe) -> None:
    golden = recorded("act")
    # Range of an action, from which the tolerance comes.
    ranges = {"act": np.array(golden["range"]), "vla": np.array([0.06, 0.06, 0.06, 2.0])}
    asked = {policy: views(policy, golden) for policy in ranges}
    start = Barrier(2 * ROBOTS)

    def ask(policy: str, view: int) -> tuple[np.ndarray, int]:
        """Return the actions as shares of their range, and how many rows had been batched."""
        files, data = asked[policy][view]
        answer = requests.post(f"{server.url}/predictions/{policy}", files=files, data=data, timeout=60)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        return np.array(found["actions"]) / ranges[policy], found["timing_ms"]["batch_size"]

    alone = {policy: [ask(policy, view)[0] for view in range(ROBOTS * VIEWS)] for policy in ranges}

    def robot(policy: str, number: int) -> tuple[float, int]:
        """Return the largest difference from the right answers, and the largest batch."""
        mine = [*range(number * VIEWS, (number + 1) * VIEWS)] * ROUNDS
        start.wait(60)
        answers = [ask(policy, view) for view in mine]
        errors = [
            np.abs(got - alone[policy][view]).max() for (got, _), view in zip(answers, mine, strict=True)
        ]
        return float(max(errors)), max(rows for _, rows in answers)

    with ThreadPoolExecutor(2 * ROBOTS) as pool:
        robots = [(policy, pool.submit(robot, policy, n)) for policy in ranges for n in range(ROBOTS)]
        told = [(policy, *future.result()) for policy, future in robots]

    for policy in ranges:
        pairs = [np.abs(a - b).max() for a, b in itertools.combinations(alone[policy], 2)]
        assert min(pairs) > 1e-2, f"{policy}: an answer of another robot must be seen as wrong"
        assert max(rows for name, _, rows in told if name == policy) > 1, f"{policy}: nothing shared a batch"
        assert max(error for name, error, _ in told if name == policy) <= 1e-4, policy
