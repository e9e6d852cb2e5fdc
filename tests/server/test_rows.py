"""One hostile row over real HTTP: its own refusal, its neighbours unharmed, one id from header to answer."""

import base64
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
import requests
from PIL import Image

from server.process import TorchServe

TIMEOUT_S = 60
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def good_row(policy_archive: Path) -> bytes:
    """The archived example as a JSON body."""
    with zipfile.ZipFile(policy_archive) as archive:
        example = json.loads(archive.read("policy.json"))["example"]
        (image,) = example["images"].values()
        picture = base64.b64encode(archive.read(image)).decode()
    return json.dumps({"image": picture, "command": example["command"], "state": example["state"]}).encode()


def post(server: TorchServe, body: bytes, **headers: str) -> requests.Response:
    return requests.post(server.predictions_url, data=body, headers={**JSON, **headers}, timeout=TIMEOUT_S)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (rb'{"\udfff":1}', 400, "unknown_field"),
        (rb'{"seed":1,"seed":1}', 400, "malformed_body"),
        (b"{", 400, "malformed_body"),
    ],
)
def test_a_hostile_row_gets_its_own_refusal(
    served_policy: TorchServe, body: bytes, status: int, code: str
) -> None:
    answer = post(served_policy, body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_surrogates_in_a_batch_harm_no_neighbour(served_policy: TorchServe, good_row: bytes) -> None:
    bodies = [good_row, rb'{"\udfff":1}'] * 24
    with ThreadPoolExecutor(len(bodies)) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda b: post(served_policy, b), bodies)]

    assert statuses == [200, 400] * 24


def test_pictures_that_cost_too_much_harm_no_neighbour(served_policy: TorchServe, good_row: bytes) -> None:
    """24 heavy pictures beside 8 good rows: each good one is answered, no heavy one is a failure."""
    file = io.BytesIO()
    Image.effect_noise((1600, 1200), 30).convert("RGBA").save(file, "PNG", compress_level=1)
    heavy = json.dumps(json.loads(good_row) | {"image": base64.b64encode(file.getvalue()).decode()}).encode()
    bodies = [good_row, heavy, heavy, heavy] * 8
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: post(served_policy, body), bodies))

    assert [answer.status_code for answer in answers[::4]] == [200] * 8
    hostile = [answer for place, answer in enumerate(answers) if place % 4]
    assert {answer.json()["error"]["code"] for answer in hostile} == {"too_large"}


def test_raw_pixels_answer_as_their_picture(served_policy: TorchServe, good_row: bytes) -> None:
    row = json.loads(good_row)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["image"]))).convert("RGB"))
    raw = {"shape": list(pixels.shape), "dtype": "uint8", "data": pixels.tobytes()}

    answer = requests.post(
        served_policy.predictions_url,
        data=msgspec.msgpack.encode(row | {"image": raw}),
        headers={"Content-Type": "application/msgpack"},
        timeout=TIMEOUT_S,
    )

    assert answer.status_code == 200, answer.text
    assert answer.json()["actions"] == post(served_policy, good_row).json()["actions"]


@pytest.mark.parametrize("accept", ["application/json", "application/msgpack"])
def test_the_clients_request_id_comes_back(served_policy: TorchServe, good_row: bytes, accept: str) -> None:
    read = msgspec.json.decode if accept == "application/json" else msgspec.msgpack.decode
    for body in (good_row, b"{}"):
        answer = post(served_policy, body, Accept=accept, **{"X-Request-Id": "robot-7:42"})
        assert read(answer.content)["request_id"] == "robot-7:42"
        assert answer.headers["request-id"] == "robot-7:42"
