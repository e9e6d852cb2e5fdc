"""`docs/openapi.yaml` says what the code does: fields, limits, errors; its example is answered as it says."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from action_spaces import SYMBOLS, outputs
from kinds import policy

from vla_runtime import errors, observation, wire
from vla_runtime.actions import to_chunk
from vla_runtime.policy import Answer, Policy
from vla_runtime.spec import Camera

ROOT = Path(__file__).parents[3]
DOCUMENT = yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text())
SCHEMAS = DOCUMENT["components"]["schemas"]
PREDICT = DOCUMENT["paths"]["/predictions/{policy}"]["post"]
REFUSAL = SCHEMAS["Refusal"]["properties"]["error"]["properties"]
CAMERA = Camera(name="front", width=16, height=16)


@pytest.fixture
def small(tmp_path: Path) -> Policy:
    """A policy that takes a picture and a command."""
    return policy(
        lambda pictures, words: (pictures.mean((1, 2, 3)) + 0 * words[:, 0])[:, None, None].expand(-1, 2, 2),
        tmp_path,
        ("image.front", "command.words"),
        cameras=(CAMERA,),
    )[0]


def named(value: Any) -> set[str]:
    """Every `$ref` in a document."""
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(named(part) for part in value.values()))
    return set().union(*(named(part) for part in value)) if isinstance(value, list) else set()


def test_every_reference_leads_somewhere() -> None:
    for reference in named(DOCUMENT):
        part = DOCUMENT
        for key in reference.removeprefix("#/").split("/"):
            part = part[key]


def of_the_gate() -> set[tuple[int, str]]:
    """Status and code of each refusal in the gate's sources."""
    sources = "".join(path.read_text() for path in (ROOT / "server" / "gate").glob("*.py"))
    return {(int(status), code) for status, code in re.findall(r'Refusal\((\d+), "(\w+)"', sources)}


def of_the_proxy() -> set[tuple[int, str]]:
    """Status and code of each refusal of the proxy; nginx's own numbers are 400 to a client."""
    rows = re.findall(r'\[(\d+)\] = { "(\w+)"', (ROOT / "docker" / "proxy" / "errors.lua").read_text())
    return {
        (int(status) if status not in ("414", "494", "495", "496", "497") else 400, c) for status, c in rows
    }


def test_the_errors_are_the_codes() -> None:
    sent = set(errors.RequestError.__subclasses__()) - {errors.Later}
    kinds = {(kind.status, kind.code) for kind in sent}
    found = kinds | of_the_gate() | of_the_proxy()

    assert len(of_the_gate()) > 8
    assert len(of_the_proxy()) > 12
    assert set(REFUSAL["code"]["enum"]) == {code for _, code in found}
    # A model's paths: what is not ready is no model, and nothing is forbidden there.
    statuses = {status for status, code in found if code not in ("not_ready", "forbidden")}
    for path in ("/predictions/{policy}", "/predictions/{policy}/{version}", "/explanations/{policy}"):
        assert {int(status) for status in DOCUMENT["paths"][path]["post"]["responses"]} == {200} | statuses


def test_the_limits_are_the_codes() -> None:
    fields = SCHEMAS["Request"]["properties"]

    assert fields["command"]["maxLength"] == observation.MAX_COMMAND
    assert fields["seed"]["maximum"] == observation.MAX_SEED
    assert fields["deadline_ms"]["maximum"] == observation.MAX_DEADLINE_MS
    assert set(fields) == set(SCHEMAS["Form"]["properties"])


def test_the_media_types_are_the_codes() -> None:
    assert set(PREDICT["requestBody"]["content"]) == {wire.JSON, wire.MSGPACK, wire.MULTIPART}


@pytest.mark.parametrize("media_type", [wire.JSON, wire.MSGPACK])
def test_the_example_is_answered_as_the_schema_says(small: Policy, media_type: str) -> None:
    example = PREDICT["requestBody"]["content"][wire.JSON]["examples"]["example"]["value"]
    encode = json.dumps(example).encode() if media_type == wire.JSON else msgspec.msgpack.encode(example)
    row = wire.read({"body": encode}, media_type)
    answer = small.infer([row])[0]

    assert isinstance(answer, Answer), answer
    body = wire.answer_body(answer, small.spec, 0.0) | {"request_id": "r"}
    assert set(body) == set(SCHEMAS["Answer"]["required"])
    assert set(body["safety"]) == set(SCHEMAS["Safety"]["properties"])


def test_fields_of_the_document_are_those_of_the_code(small: Policy) -> None:
    """No field of the document is unknown to a policy that takes all of them."""
    refused = small.infer([{"other": 1}])[0]

    assert isinstance(refused, errors.RequestError)
    taken = {name.strip() for name in refused.message.partition("it takes: ")[2].split(",")}
    assert taken | {"state", "delay"} == set(SCHEMAS["Request"]["properties"])


def test_a_symbol_is_as_the_schema_says(small: Policy) -> None:
    spec = msgspec.structs.replace(
        small.spec,
        action=SYMBOLS,
        artifact=msgspec.structs.replace(small.spec.artifact, outputs=("logits",)),
    )
    chunk = to_chunk(outputs([[0.0] * 6] * 2), np.zeros(0), np.zeros(6), spec)
    body = wire.answer_body(Answer(chunk, {}, 1), spec, 0.0)

    assert set(body["actions"][0]) == set(SCHEMAS["Symbol"]["properties"])
