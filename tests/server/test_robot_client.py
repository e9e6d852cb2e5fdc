"""The robot's client against a served policy: encodings agree, and one request id goes all the way."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.process import TorchServe
from vla_client import Observation, RemotePolicy, RequestRefused


@pytest.fixture
def observation(policy_archive: Path) -> Observation:
    """The archive's example, its picture as an array."""
    with zipfile.ZipFile(policy_archive) as archive:
        example = json.loads(archive.read("policy.json"))["example"]
        pictures = {name: archive.read(file) for name, file in example["images"].items()}
    arrays = {
        name: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for name, data in pictures.items()
    }
    return Observation(arrays, example["command"], example["state"] or None)


def test_raw_pixels_are_answered_as_png_is(served_policy: TorchServe, observation: Observation) -> None:
    with (
        RemotePolicy(served_policy.url, 30, encoding="raw") as raw,
        RemotePolicy(served_policy.url, 30, encoding="png") as png,
    ):
        np.testing.assert_array_equal(raw.infer(observation).actions, png.infer(observation).actions)


def test_a_request_has_one_id(served_policy: TorchServe, observation: Observation) -> None:
    with RemotePolicy(served_policy.url, 30) as policy:
        first, second = policy.infer(observation).request_id, policy.infer(observation).request_id
        stateless = Observation(observation.image, observation.command)
        with pytest.raises(RequestRefused, match=r"^400 missing_field, field 'state': ") as caught:
            policy.infer(stateless)
    assert len({first, second, caught.value.request_id}) == 3
    assert all(len(each or "") == 32 for each in (first, second, caught.value.request_id))
