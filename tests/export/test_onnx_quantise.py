"""ONNX in 8 and 4 bits: what each file holds, how close it stays, and what is refused."""

import shutil
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from export.batch import Batch, Layout
from export.errors import ExportError
from export.export import Options, export
from export.onnx_file import save
from export.onnx_quantise import quantise
from export.target import Target
from vla_runtime.module import load_module
from vla_runtime.spec import ArtifactSpec, Camera, Precision

CAMERA = Camera(name="front", width=16, height=16)
LAYOUT = Layout((CAMERA,), ("image.front",), (), horizon=2, action=3)


class Seeing(nn.Module):
    """A convolution and two products over one picture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 6))

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        del input_ids, attention_mask
        return ()

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        return {"actions": self.head(self.tower(*inputs)).unflatten(-1, (2, 3))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file in float32."""
    path = tmp_path_factory.mktemp("whole") / "policy.onnx"
    save(Seeing().eval(), LAYOUT, path, Target(largest_batch=4, format="onnx"))
    return path


def rounded(whole: Path, folder: Path, precision: Precision) -> Path:
    """Write a file of this precision, calibrated on random pictures."""
    path = Path(shutil.copy(whole, folder))
    seen = [Batch.random(LAYOUT, 4, seed, "cpu") for seed in range(8)]
    quantise(path, precision, Seeing().eval(), seen)
    return path


@pytest.mark.parametrize(
    ("precision", "kind", "share"),
    [
        ("int8", "DynamicQuantizeLinear", 0.04),
        ("int8_static", "QuantizeLinear", 0.08),
        ("int8_weights", "MatMulNBits", 0.04),
        ("int4_weights", "MatMulNBits", 0.3),
    ],
)
def test_each_precision_computes_about_the_same(
    whole: Path, tmp_path: Path, precision: Precision, kind: str, share: float
) -> None:
    path = rounded(whole, tmp_path, precision)

    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kind in kinds
    assert not list(tmp_path.glob("*.float32"))
    artifact = ArtifactSpec(path.name, (), LAYOUT.inputs, (1, 4), ("actions",), format="onnx")
    batch = Batch.random(LAYOUT, 3, 99, "cpu")
    with torch.inference_mode():
        wanted = batch.run(Seeing().eval())["actions"]
    missed = batch.run(load_module(tmp_path, artifact))["actions"] - wanted
    assert 0 < missed.square().mean().sqrt() < share * wanted.std()


@pytest.mark.parametrize(("precision", "bits"), [("int8_weights", 8), ("int4_weights", 4)])
def test_bits_of_the_weights_are_those_asked_for(
    whole: Path, tmp_path: Path, precision: Precision, bits: int
) -> None:
    graph = onnx.load(rounded(whole, tmp_path, precision)).graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    found = [each.i for node in nodes for each in node.attribute if each.name == "bits"]
    assert found == [bits, bits]  # both products of the head


def test_nothing_to_calibrate_on_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = Options(
        str(tiny_checkpoint), tmp_path / "vla.mar", buckets=(1, 2), format="onnx", precision="int8_static"
    )
    with pytest.raises(ExportError, match=r"^int8_static is calibrated on observations"):
        export(options)


def test_other_formats_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"^precision 'int4_weights' is of format 'onnx', got 'torchscript'$"
    ):
        export(Options(str(tiny_checkpoint), tmp_path / "vla.mar", precision="int4_weights"))
