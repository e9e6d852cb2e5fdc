"""ONNX: what can't be written is refused, what is missing is named, equal models give equal bytes."""

import dataclasses
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from making import Exported, serve
from sources import grey, png
from test_export import LAYOUT, FrozenBranch, FrozenLoop, Sound
from test_formats import chunk_of
from torch import Tensor

from archive.read import unpack
from export import onnx_file
from export.errors import ExportError
from export.export import Options, archived, export
from export.native import make
from export.target import Target
from export.verify import verify
from server.process import TorchServe
from vla_runtime.errors import SpecError
from vla_runtime.module import load_module
from vla_runtime.policy import Policy
from vla_runtime.spec import ArtifactSpec

TARGET = Target(largest_batch=8, format="onnx")


@pytest.fixture(scope="module")
def onnx_archive(exported: Exported) -> Path:
    return exported("onnx", "float32")


@pytest.fixture
def unpacked(onnx_archive: Path, tmp_path: Path) -> Path:
    return unpack(onnx_archive, tmp_path / "unpacked")


@pytest.fixture(scope="module")
def server(onnx_archive: Path) -> Iterator[TorchServe]:
    with serve(onnx_archive) as server:
        yield server


def artifact_of(outputs: tuple[str, ...]) -> ArtifactSpec:
    return ArtifactSpec("policy.onnx", LAYOUT.command, LAYOUT.inputs, (1, 8), outputs, format="onnx")


class Climbing(Sound):
    """Sums with a running maximum, along the last axis, which ONNX has no operator for."""

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        outputs = super().act(*inputs)
        highest, place = torch.cummax(outputs["actions"], 2)
        lowest, _ = torch.cummax((outputs["actions"] * 100).long(), 1)
        return {"actions": highest + 0.1 * place + 0.01 * lowest}


def test_running_maximum_is_what_torch_makes_of_it(tmp_path: Path) -> None:
    model = Climbing().eval()
    outputs = onnx_file.save(model, LAYOUT, tmp_path / "policy.onnx", TARGET)

    loaded = load_module(tmp_path, artifact_of(outputs))

    parity = verify(model, loaded, LAYOUT, TARGET, tolerance=1e-4)
    assert (parity.batch_sizes, outputs) == ((1, 3, 8), ("actions",))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (FrozenLoop, r"^FrozenLoop\.act can't be captured with a dynamic batch size: .*batch"),
        (FrozenBranch, r"^FrozenBranch\.act can't be captured with a dynamic batch size: .*data-dependent"),
    ],
)
def test_frozen_model_is_refused(tmp_path: Path, bad: type[Sound], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        onnx_file.save(bad().eval(), LAYOUT, tmp_path / "policy.onnx", TARGET)


def test_file_of_another_batch_size_is_found_out(tmp_path: Path) -> None:
    """What a converter that bakes the batch size in would write."""
    model = Sound().eval()
    outputs = onnx_file.save(model, LAYOUT, tmp_path / "policy.onnx", TARGET)
    onnx: Any = importlib.import_module("onnx")
    baked = onnx.load(str(tmp_path / "policy.onnx"))
    for value in baked.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(baked, str(tmp_path / "policy.onnx"))

    with pytest.raises(ExportError, match="fails at 1: its batch size is baked in"):
        verify(model, load_module(tmp_path, artifact_of(outputs)), LAYOUT, TARGET, tolerance=1e-4)


def test_equal_models_give_equal_bytes_without_paths(tmp_path: Path) -> None:
    model = Sound().eval()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        onnx_file.save(model, LAYOUT, tmp_path / name / "policy.onnx", TARGET)

    files = [sorted((tmp_path / name).iterdir()) for name in ("one", "two")]
    assert [file.name for file in files[0]] == ["policy.encode_command.onnx", "policy.onnx"]
    contents = [[file.read_bytes() for file in folder] for folder in files]
    assert contents[0] == contents[1]
    assert not any(b"site-packages" in content or b"/tests/" in content for content in contents[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "bfloat16"}, r"^format 'onnx' is exported on device 'cpu', and not in bfloat16"),
        ({"compile": True}, r"^--compile is for format 'eager' alone, got 'onnx'"),
    ],
)
def test_what_onnx_is_not_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    options = Options(str(tiny_checkpoint), tmp_path / "vla.mar", format="onnx")
    with pytest.raises(ExportError, match=message):
        export(dataclasses.replace(options, **change))


def test_without_onnx_runtime_an_archive_is_refused_in_one_line(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(SpecError) as refusal:
        Policy.load(unpacked)
    assert str(refusal.value) == (
        "policy.onnx is computed by ONNX Runtime, which is not installed here: pip install onnxruntime, or "
        "onnxruntime-gpu where there is a GPU"
    )


def test_missing_and_damaged_files_are_named(unpacked: Path, tmp_path: Path) -> None:
    shutil.copytree(unpacked, tmp_path / "damaged")
    (tmp_path / "damaged" / "policy.onnx").write_bytes(b"no model")
    (unpacked / "policy.encode_command.onnx").unlink()

    with pytest.raises(SpecError, match=r"^policy\.encode_command\.onnx can't be loaded: it is missing$"):
        Policy.load(unpacked)
    with pytest.raises(SpecError, match=r"^policy\.onnx can't be loaded: "):
        Policy.load(tmp_path / "damaged")


def test_device_that_onnx_runtime_can_not_use_is_refused(unpacked: Path) -> None:
    spec = Policy.load(unpacked).spec

    with pytest.raises(SpecError, match=r"^policy\.onnx can't be computed on cuda:0: ONNX Runtime here has "):
        load_module(unpacked, spec.artifact, "cuda:0")


def test_served_over_http_as_in_process(server: TorchServe, unpacked: Path) -> None:
    policy = Policy.load(unpacked)
    row = {"image": png(grey(90)), "command": "lift the red block", "state": [0.1, 0.5]}
    ((answer),) = policy.infer([row])

    files, data = {"image": row["image"]}, {"command": row["command"], "state": json.dumps(row["state"])}
    served = requests.post(f"{server.url}/predictions/vla", files=files, data=data, timeout=30)

    assert served.status_code == 200, served.text
    np.testing.assert_allclose(served.json()["actions"], chunk_of(answer).actions, atol=1e-6)
    described = requests.get(f"{server.management_url}/models/vla?customized=true", timeout=30).json()
    assert described[0]["customizedMetadata"]["artifact"]["format"] == "onnx"


def test_int8_file_multiplies_integers_and_is_judged_by_its_root_mean_square(
    tiny_checkpoint: Path, onnx_archive: Path, tmp_path: Path
) -> None:
    whole, output = unpack(onnx_archive, tmp_path / "whole"), tmp_path / "vla.mar"
    options = Options(str(tiny_checkpoint), output, buckets=(1, 2), format="onnx", precision="int8")

    spec = archived(make(tiny_checkpoint), options, converted=whole)

    parity = spec.provenance["parity"]
    assert (spec.artifact.format, spec.artifact.precision) == ("onnx", "int8")
    assert parity["judged_by"] == "root_mean_square"
    assert 1e-5 < parity["root_mean_square"] <= 0.05
    rounded = unpack(output, tmp_path / "rounded")
    assert b"DynamicQuantizeLinear" in (rounded / "policy.onnx").read_bytes()
    assert b"DynamicQuantizeLinear" not in (whole / "policy.onnx").read_bytes()
    assert not list(rounded.glob("*.float32"))
