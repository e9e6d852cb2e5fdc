"""The HTTP contract against a real TorchServe that serves the default checkpoint."""

import base64
import io
import json
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import msgspec
import numpy as np
import pytest
import requests
from PIL import Image

from archive.read import unpack
from server.process import TorchServe
from vla_runtime.policy import Answer, Policy

TIMEOUT_S = 60
CLIENTS = 32
# Of an action, in its physical unit: the acceptance of batching.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def policy(policy_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """The archive's policy in this process, for the answers that are right."""
    folder = tmp_path_factory.mktemp("policy")
    return Policy.load(unpack(policy_archive, folder))


@pytest.fixture(scope="module")
def example(policy_archive: Path) -> dict[str, Any]:
    """The archived example as multipart fields."""
    with zipfile.ZipFile(policy_archive) as archive:
        example = json.loads(archive.read("policy.json"))["example"]
        (image,) = example["images"].values()
        return {
            "image": archive.read(image),
            "command": example["command"],
            "state": json.dumps(example["state"]),
        }


def post(server: TorchServe, fields: dict[str, Any], **options: Any) -> requests.Response:
    """Post fields as multipart: bytes as a file, the rest as text."""
    files = {
        name: (name, value) if isinstance(value, bytes) else (None, value) for name, value in fields.items()
    }
    return requests.post(server.predictions_url, files=files, timeout=TIMEOUT_S, **options)


def expected(policy: Policy, fields: dict[str, object]) -> np.ndarray:
    answer = policy.infer([fields])[0]
    assert isinstance(answer, Answer), answer
    return answer.chunk.actions


def test_answer_has_the_contract_and_equals_in_process(
    served_policy: TorchServe, policy: Policy, example: dict[str, object]
) -> None:
    answer = post(served_policy, example)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == [
        "actions",
        "action_names",
        "control_hz",
        "confidence",
        "safety",
        "timing_ms",
        "policy",
        "version",
        "extras",
        "request_id",
    ]
    assert body["action_names"] == ["delta_x", "delta_y", "delta_z", "gripper"]
    assert (body["control_hz"], body["policy"], body["version"]) == (10.0, policy.spec.name, "1.0")
    assert body["request_id"] == answer.headers["x-request-id"]
    assert repr(body["extras"]["box_camera"]) == "0"  # an index, and not 0.0
    assert sorted(body["timing_ms"]) == ["batch_size", "inference", "postprocess", "preprocess", "queue"]
    np.testing.assert_allclose(body["actions"], expected(policy, example), atol=1e-6)
    np.testing.assert_allclose(body["actions"], policy.spec.example.actions, atol=1e-4)


def test_json_and_msgpack_give_the_same_actions(served_policy: TorchServe, example: dict[str, Any]) -> None:
    multipart = post(served_policy, example).json()["actions"]
    state = json.loads(example["state"])
    image = base64.b64encode(example["image"]).decode()
    as_json = requests.post(
        f"{served_policy.predictions_url}/1.0",
        json={"image": image, "command": example["command"], "state": state},
        timeout=TIMEOUT_S,
    )
    as_msgpack = requests.post(
        served_policy.predictions_url,
        data=msgspec.msgpack.encode({**example, "state": state}),
        headers={"Content-Type": "application/msgpack", "Accept": "application/msgpack"},
        timeout=TIMEOUT_S,
    )

    assert as_json.json()["actions"] == multipart
    assert as_msgpack.headers["content-type"] == "application/msgpack"
    assert msgspec.msgpack.decode(as_msgpack.content)["actions"] == multipart


def together(tasks: list[Callable[[], requests.Response]]) -> list[requests.Response]:
    """Run every task in a thread of its own, all starting at once."""
    barrier = Barrier(len(tasks))

    def run(task: Callable[[], requests.Response]) -> requests.Response:
        barrier.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


def noisy(image: bytes, seed: int) -> bytes:
    """Return the example's picture with noise of its own: distinct, and still a scene."""
    pixels = np.asarray(Image.open(io.BytesIO(image)), np.int16)
    noise = np.random.default_rng(seed).integers(-40, 41, pixels.shape)
    file = io.BytesIO()
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_concurrent_clients_share_batches_and_get_their_own_answers(
    served_policy: TorchServe, example: dict[str, Any]
) -> None:
    commands = (
        "push the red block",
        "lift the blue cube",
        "reach the green block",
        "pick up the yellow block",
    )
    requests_ = [
        {**example, "image": noisy(example["image"], seed), "command": commands[seed % 4]}
        for seed in range(CLIENTS)
    ]
    alone = [post(served_policy, fields).json() for fields in requests_]

    answers = []
    for _ in range(3):
        batch = together([lambda f=fields: post(served_policy, f) for fields in requests_])
        assert [answer.status_code for answer in batch] == [200] * CLIENTS
        answers += [answer.json() for answer in batch]

    assert {answer["timing_ms"]["batch_size"] for answer in alone} == {1}
    assert max(answer["timing_ms"]["batch_size"] for answer in answers) > 1
    for one, answer in zip(alone * 3, answers, strict=True):
        np.testing.assert_allclose(answer["actions"], one["actions"], atol=TOLERANCE)
    chunks = np.array([answer["actions"] for answer in alone])
    differences = np.abs(chunks[:, None] - chunks[None]).max(axis=(2, 3)) + np.eye(CLIENTS)
    assert differences.min() > TOLERANCE  # the answers are distinct, so a mix-up would show


BAD = [
    ({"image": b"no picture"}, 400, "bad_image", "image"),
    ({"command": None}, 400, "missing_field", "command"),
    ({"command": "x" * 513}, 422, "invalid_value", "command"),
    ({"command": "block " * 80}, 422, "invalid_value", "command"),
    ({"state": "[1, 2, 3]"}, 422, "invalid_value", "state"),
    ({"state": "[0.1, 0.1, NaN, 1]"}, 422, "invalid_value", "state"),
    ({"stat": "[1]"}, 400, "unknown_field", "stat"),
    ({"deadline_ms": "0.0001"}, 504, "deadline_expired", "deadline_ms"),
]


def test_bad_requests_fail_alone_in_their_batch(
    served_policy: TorchServe, policy: Policy, example: dict[str, Any]
) -> None:
    tasks, wanted = [], []
    for index in range(CLIENTS):
        fields = {**example, "image": noisy(example["image"], index)}
        bad = BAD[index // 2 % len(BAD)] if index % 2 else None
        fields |= bad[0] if bad else {}
        tasks.append({name: value for name, value in fields.items() if value is not None})
        wanted.append(bad[1:] if bad else expected(policy, fields))

    answers = together([lambda f=fields: post(served_policy, f) for fields in tasks])

    sizes = []
    for answer, want in zip(answers, wanted, strict=True):
        if isinstance(want, np.ndarray):
            assert answer.status_code == 200
            np.testing.assert_allclose(answer.json()["actions"], want, atol=TOLERANCE)
            sizes.append(answer.json()["timing_ms"]["batch_size"])
        else:
            status, code, field = want
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert answer.json()["error"]["field"] == field
            assert answer.headers["content-type"] == "application/json"
            assert not any(word in answer.text for word in ("Traceback", ".py", "/tmp", "Error("))
    assert max(sizes) > 1


JSON, MSGPACK = "application/json", "application/msgpack"
UNREADABLE = [
    (
        "text/plain",
        b"push",
        415,
        "unsupported_media_type",
        f"multipart/form-data, {JSON} or {MSGPACK}; got text/plain",
    ),
    (JSON, b'{"command": ', 400, "malformed_body", "the body is not application/json"),
    (JSON, b"[1]", 400, "malformed_body", "the body must be an object of fields in application/json"),
    (MSGPACK, b"\xc1", 400, "malformed_body", "the body is not application/msgpack"),
    (
        "multipart/form-data; boundary=x",
        b"--x\r\ncut",
        400,
        "malformed_body",
        "multipart body has no readable part",
    ),
    (JSON, b"{}", 400, "missing_field", "needs the picture of camera 'front' as JPEG, PNG or WebP"),
]


@pytest.mark.parametrize(("content_type", "body", "status", "code", "message"), UNREADABLE)
def test_unreadable_bodies(  # noqa: PLR0917
    served_policy: TorchServe, content_type: str, body: bytes, status: int, code: str, message: str
) -> None:
    headers = {"Content-Type": content_type}
    answer = requests.post(served_policy.predictions_url, data=body, headers=headers, timeout=TIMEOUT_S)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["message"].endswith(message)
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_queue_time_counts_towards_the_deadline(
    served_policy: TorchServe, example: dict[str, object]
) -> None:
    started = {"X-Request-Start": f"t={time.time() * 1000 - 200:.3f}"}

    late = post(served_policy, {**example, "deadline_ms": "150"}, headers=started)
    in_time = post(served_policy, {**example, "deadline_ms": "60000"}, headers=started)

    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_expired")
    assert in_time.status_code == 200
    assert in_time.json()["timing_ms"]["queue"] >= 200


def test_explanation_is_the_record_of_the_decision(
    served_policy: TorchServe, example: dict[str, object]
) -> None:
    url = served_policy.predictions_url.replace("/predictions/", "/explanations/")
    files = {"image": ("image", example["image"]), "command": (None, example["command"])}
    files["state"] = (None, example["state"])

    answer = requests.post(served_policy.predictions_url, files=files, timeout=TIMEOUT_S).json()
    body = requests.post(url, files=files, timeout=TIMEOUT_S).json()
    picture = requests.post(url, files=files, headers={"Accept": "image/png"}, timeout=TIMEOUT_S)

    attention = np.array(body["attention"]["front"])
    assert attention.shape == (24, 24)
    assert attention.sum() == pytest.approx(1, abs=1e-3)
    assert picture.headers["content-type"] == "image/png"
    width, height = Image.open(io.BytesIO(picture.content)).size
    assert (width, height > 384) == (384, True)
    assert body["seen"]["command"] == example["command"]
    assert body["seen"]["cameras"]["front"]["width"] == 96
    assert list(body["seen"]["state"]) == ["hand_x", "hand_y", "hand_z", "gripper_opening"]
    assert body["understood"] == {"confidence": answer["confidence"], **answer["extras"]}
    first = dict(zip(answer["action_names"], answer["actions"][0], strict=True))
    assert body["decided"]["first"] == pytest.approx(first, rel=1e-4)
    assert (body["limited"], body["version"]) == (answer["safety"], answer["version"])
    assert body["sentence"].startswith(f"It is {100 * answer['confidence']:.0f} % sure. It understood: box ")


def test_management_describes_the_policy(served_policy: TorchServe, policy: Policy) -> None:
    answer = requests.get(
        f"{served_policy.management_url}/models/vla?customized=true", timeout=TIMEOUT_S
    ).json()[0]["customizedMetadata"]

    assert answer["architecture"] == "grounded"
    assert [dimension["unit"] for dimension in answer["action"]["dimensions"]] == ["m", "m", "m", "1"]
    assert answer["provenance"]["checkpoint_sha256"] == policy.spec.provenance["checkpoint_sha256"]
    again = requests.post(served_policy.predictions_url, json=answer["example_request"], timeout=TIMEOUT_S)
    np.testing.assert_allclose(again.json()["actions"], answer["example"]["actions"], atol=1e-4)


def test_log_names_no_users_content(served_policy: TorchServe, example: dict[str, object]) -> None:
    post(served_policy, {**example, "command": "xylophone"})
    post(served_policy, {**example, "command": "xylophone", "state": "[]"})
    requests.post(
        served_policy.predictions_url,
        data=b'{"command": "xylophone"',
        headers={"Content-Type": "application/json"},
        timeout=TIMEOUT_S,
    )

    assert "xylophone" not in served_policy.log_tail(500)
