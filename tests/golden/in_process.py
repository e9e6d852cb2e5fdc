"""What every imported policy must do without a server: answer as its library does, alone and in a batch."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.drawn import picture
from PIL import Image

from export.errors import ExportError
from export.flat import flattened
from export.source import Source
from vla_runtime.artifact import Artifact
from vla_runtime.errors import RequestError
from vla_runtime.policy import Policy
from vla_runtime.spec import ArtifactSpec, Example


def served(source: Source) -> Policy:
    """Return the policy as a worker has it, around the module itself instead of a trace."""
    module, layout = flattened(source)
    spec = source.spec(
        "1.0",
        ArtifactSpec(
            file="", command=layout.command, inputs=layout.inputs, buckets=(1, 2, 4), outputs=("actions",)
        ),
        Example(images={}, command="", state=(), seed=0, actions=()),
        {},
    )
    artifact = Artifact(module, spec, torch.device("cpu"))
    return Policy(spec, source.command_tokenizer(), artifact, threads=1)


def row(golden: dict[str, Any], request: dict[str, Any]) -> dict[str, object]:
    """Return a golden request of one step as a worker gets it."""
    (step,) = request["steps"]
    fields: dict[str, object] = {"state": step["state"], "seed": request["seed"]}
    if "command" in request:
        fields["command"] = request["command"]
    alone = len(step["pictures"]) == 1
    for key, seed in step["pictures"].items():
        data = io.BytesIO()
        Image.fromarray(picture(seed, *golden["sizes"][key])).save(data, "PNG")
        fields["image" if alone else key.replace("observation.images.", "image.")] = data.getvalue()
    return fields


def parity(source: Source, golden: dict[str, Any]) -> float:
    """Return the largest difference from the library's actions, as a share of the training data's range."""
    policy = served(source)
    rows = [row(golden, request) for request in golden["requests"]]

    answers = [policy.infer([one])[0] for one in rows] + policy.infer(rows)

    expected = np.array([request["actions"] for request in golden["requests"]] * 2)
    for answer in answers:
        assert not isinstance(answer, RequestError), answer.message
        assert answer.chunk.safety.status == "ok"
    assert (np.ptp(expected, axis=0) / golden["range"]).max() > 0.1, (
        "the requests must differ in their answers"
    )
    got = np.array([answer.chunk.actions for answer in answers if not isinstance(answer, RequestError)])
    return float((np.abs(got - expected) / golden["range"]).max())


def refused_in_one_line(read: Callable[[Path], object], folder: Path, message: str) -> None:
    """Assert that reading a folder is refused, by one line that matches a pattern."""
    with pytest.raises(ExportError) as refused:
        read(folder)

    assert re.search(message, str(refused.value)), refused.value
    assert "\n" not in str(refused.value)
