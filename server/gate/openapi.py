"""The contract for programs: `docs/openapi.yaml`, as JSON."""

import json
from pathlib import Path

import yaml

from server.gate.refusal import JSON, Answer

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "openapi.yaml"


def openapi() -> Answer:
    """Return the document as an answer."""
    return Answer(200, JSON, json.dumps(yaml.safe_load(DOCUMENT.read_text())).encode())
