"""Good and bad requests mixed at random: every good one is answered rightly, every bad one is its own 4xx."""

import base64
import io
import json
import random
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import requests
from PIL import Image

from archive.read import unpack
from bench.faults.processes import proxy
from fuzz.server import send, target_of
from fuzz.targets import load
from server.gate.gate import served
from server.process import TorchServe

CLIENTS, BAD = 24, 0.3
JSON, MSGPACK = "application/json", "application/msgpack"
FORM = "multipart/form-data; boundary=b"
# What every request needs, and what is no number of a state.
FIELDS = ("image", "command", "state")
NUMBERS = (float("nan"), float("inf"), 1e30, "far", None, True, [1])


@dataclass(frozen=True)
class Sent:
    """One request, and what must come back."""

    kind: str
    body: bytes
    media_type: str
    status: int
    # Of a refusal.
    code: str | None
    # float [T, A] of a good one.
    actions: np.ndarray | None = None


@pytest.fixture(scope="module")
def gated(policy_archive: Path) -> Iterator[tuple[TorchServe, int]]:
    """The gate of `python -m server`, which makes the batches, before the default policy, and its port."""
    with served(policy_archive) as (server, port):
        yield server, port


@pytest.fixture(scope="module")
def gate_port(gated: tuple[TorchServe, int]) -> int:
    """The gate's port."""
    return gated[1]


@pytest.fixture(scope="module")
def proxy_port(gate_port: int, folder: Path) -> Iterator[int]:
    """The proxy before that gate."""
    with proxy(folder, gate_port) as running:
        yield running.port


@pytest.fixture(scope="module")
def good_rows(policy_archive: Path) -> list[dict[str, Any]]:
    """Requests that differ in picture, command and state."""
    with zipfile.ZipFile(policy_archive) as archive:
        example = json.loads(archive.read("policy.json"))["example"]
        (name,) = example["images"].values()
        picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
    rows = []
    for index, command in enumerate([example["command"], "push the red block", "reach", "lift it now"]):
        file = io.BytesIO()
        picture.rotate(90 * index).save(file, ["PNG", "JPEG", "WEBP"][index % 3])
        state = [value * (1 - 0.2 * index) for value in example["state"]]
        rows.append({"image": file.getvalue(), "command": command, "state": state, "seed": index})
    return rows


def pack(body: object) -> bytes:
    return msgspec.msgpack.encode(body)


def text(row: dict[str, Any]) -> bytes:
    return json.dumps(row | {"image": base64.b64encode(row["image"]).decode()}).encode()


def form(row: dict[str, Any], *more: tuple[str, object]) -> bytes:
    """Write a form: text as it is, everything else as JSON."""
    parts = []
    for name, value in [*row.items(), *more]:
        content = value.encode() if isinstance(value, str) else value
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        parts += [head.encode(), content, b"\r\n"]
    return b"".join([*parts, b"--b--\r\n"])


Spoilt = tuple[bytes, str, int, str]


def spoilt_fields(row: dict[str, Any], draw: random.Random) -> dict[str, Spoilt]:
    """Spoil a request in MessagePack or JSON in many ways: body, media type, and what it gets."""
    cut, letters = cut_short(row, draw), [chr(draw.randrange(97, 123)) for _ in range(8)]
    large = io.BytesIO()
    Image.new("L", (draw.randrange(2100, 4000), 2100)).save(large, "PNG")
    missing, number = draw.choice(FIELDS), draw.choice(NUMBERS)
    said = draw.choice(["", " \u200b", "word " * 90, "x" * 513, "\0"])
    return {
        "cut short": (pack(row | {"image": cut}), MSGPACK, 400, "bad_image"),
        "no picture": (pack(row | {"image": draw.randbytes(300)}), MSGPACK, 400, "bad_image"),
        "empty picture": (pack(row | {"image": b""}), MSGPACK, 400, "bad_image"),
        "too large": (pack(row | {"image": large.getvalue()}), MSGPACK, 413, "too_large"),
        "missing": (pack(without(row, missing)), MSGPACK, 400, "missing_field"),
        "unknown": (pack(row | {"".join(letters): 1}), MSGPACK, 400, "unknown_field"),
        "surrogate": (b'{"\\udf%02x":1}' % draw.randrange(16, 256), JSON, 400, "unknown_field"),
        "no JSON": (text(row)[: draw.randrange(1, 60)], JSON, 400, "malformed_body"),
        "no map": (pack([row["command"]] * 3), MSGPACK, 400, "malformed_body"),
        "twice": (b'{"seed": 1, ' + text(row)[1:], JSON, 400, "malformed_body"),
        "state": (pack(row | {"state": [number, *row["state"][1:]]}), MSGPACK, 422, "invalid_value"),
        "short state": (pack(row | {"state": row["state"][1:]}), MSGPACK, 422, "invalid_value"),
        "seed": (pack(row | {"seed": draw.choice([-1, 1.5, "x"])}), MSGPACK, 422, "invalid_value"),
        "command": (pack(row | {"command": said}), MSGPACK, 422, "invalid_value"),
        "deadline": (
            pack(row | {"deadline_ms": draw.choice([0, -5, "soon"])}), MSGPACK, 422, "invalid_value",
        ),
        "media type": (text(row), "text/plain", 415, "unsupported_media_type"),
        "many values": (b'{"state": [' + b"0," * 20_000 + b"0]}", JSON, 413, "too_large"),
        "charset": (text(row), JSON + "; charset=utf-16", 400, "malformed_body"),
    }  # fmt: skip


def spoilt_forms(row: dict[str, Any], draw: random.Random) -> dict[str, Spoilt]:
    """Spoil a request as a form."""
    missing, number = draw.choice(FIELDS), draw.choice(NUMBERS)
    return {
        "cut form": (form(row)[: -draw.randrange(5, 60)], FORM, 400, "malformed_body"),
        "field twice": (form(row, ("seed", 3)), FORM, 400, "malformed_body"),
        "form's state": (form(row | {"state": number}), FORM, 422, "invalid_value"),
        "form's picture": (form(row | {"image": cut_short(row, draw)}), FORM, 400, "bad_image"),
        "form without": (form(without(row, missing)), FORM, 400, "missing_field"),
        "empty form": (b"--b--\r\n", FORM, 400, "malformed_body"),
    }


def cut_short(row: dict[str, Any], draw: random.Random) -> bytes:
    """Return the beginning of its picture."""
    return row["image"][: draw.randrange(1, len(row["image"]) // 2)]


def without(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != field}


def bad(row: dict[str, Any], draw: random.Random) -> Sent:
    """Spoil a good request in one of many ways."""
    spoilt = spoilt_fields(row, draw) | spoilt_forms(row, draw)
    kind = draw.choice(sorted(spoilt))
    body, media_type, status, code = spoilt[kind]
    return Sent(kind, body, media_type, status, code)


def post(url: str, sent: Sent) -> requests.Response:
    return requests.post(url, data=sent.body, headers={"Content-Type": sent.media_type}, timeout=120)


def wrong(url: str, sent: Sent) -> str | None:
    """Send one request and say what is wrong with what comes back."""
    answer = post(url, sent)
    got = f"{sent.kind}: {answer.status_code} {answer.text[:200]}"
    if answer.status_code != sent.status or answer.headers["content-type"] != JSON:
        return got
    if sent.actions is None:
        return None if answer.json()["error"]["code"] == sent.code else got
    return None if np.abs(np.float64(answer.json()["actions"]) - sent.actions).max() <= 1e-4 else got


@pytest.mark.parametrize("way", ["proxy_port", "gate_port"])
def test_changed_bytes_are_answered_as_the_contract_says(
    request: pytest.FixtureRequest, policy_archive: Path, tmp_path: Path, way: str
) -> None:
    whole = load(unpack(policy_archive, tmp_path))["http"]
    port = request.getfixturevalue(way)

    report = send(target_of(whole, port), 12, 60.0, most=200)

    print(report.outcomes)
    assert [finding.detail for finding in report.findings] == []
    assert {"answered", "bad_request", "malformed_body", "bad_image"} <= set(report.outcomes)


@pytest.mark.parametrize(
    ("way", "count"),
    [
        ("proxy_port", 300),
        pytest.param("proxy_port", 2000, marks=pytest.mark.slow),
        pytest.param("gate_port", 2000, marks=pytest.mark.slow),
    ],
)
def test_good_requests_are_right_and_bad_ones_are_their_own_refusal(
    request: pytest.FixtureRequest, good_rows: list[dict[str, Any]], way: str, count: int
) -> None:
    url, draw = f"http://127.0.0.1:{request.getfixturevalue(way)}/predictions/vla", random.Random(count)
    good = []
    for row in good_rows:
        alone = post(url, Sent("alone", pack(row), MSGPACK, 200, None))
        actions = np.array(alone.json()["actions"])
        for body, media_type in ((pack(row), MSGPACK), (text(row), JSON), (form(row), FORM)):
            good.append(Sent("good", body, media_type, 200, None, actions))
    mixed = [
        bad(draw.choice(good_rows), draw) if draw.random() < BAD else draw.choice(good) for _ in range(count)
    ]
    with ThreadPoolExecutor(CLIENTS) as pool:
        failures = [failure for failure in pool.map(partial(wrong, url), mixed) if failure]
    print(Counter(sent.kind for sent in mixed))

    assert np.abs(good[0].actions - good[3].actions).max() > 1e-3  # rightness means something
    assert failures == []


def test_a_large_batch_reaches_the_worker_in_shared_memory(
    gated: tuple[TorchServe, int], good_rows: list[dict[str, Any]]
) -> None:
    server, port = gated
    assert server.shared_memory is not None
    pixels = {"shape": [480, 640, 3], "dtype": "uint8", "data": bytes(range(256)) * 3600}
    body, headers, seen = pack(good_rows[0] | {"image": pixels}), {"Content-Type": MSGPACK}, set[str]()
    with ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{port}/predictions/vla"
        statuses = [
            pool.submit(lambda: requests.post(url, body, headers=headers).status_code) for _ in range(20)
        ]
        while not statuses[-1].done():
            seen |= {file.name for file in server.shared_memory.iterdir()}
    assert {status.result() for status in statuses} == {200}
    assert seen
    assert list(server.shared_memory.iterdir()) == []
