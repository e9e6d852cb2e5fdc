"""openpi's JAX checkpoints: what the real library answers from them, and what is refused in one line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.folders import TOKENIZER, edit_json, rebuilt, recorded
from golden.in_process import parity, refused_in_one_line

from export.find import find
from export.foreign.facts import Facts
from export.source import Source

tensorstore = pytest.importorskip("tensorstore", reason="it is of the extra `jax`")
# Configurations, and the parity of each: openpi's JAX code computes the waves of the flow's time in float32,
# its PyTorch port in float64, and a pi0.5 follows them in every norm.
CONFIGS = {"pi0_libero": 1e-5, "pi05_droid": 1e-4}
HORIZON = 5


def read(folder: Path, **facts: Any) -> Source:
    told: dict[str, Any] = {"names": folder / "meta" / "names.json", "margin": 20.0, "tokenizer": TOKENIZER}
    told |= {"origin": "openpi", "robot": "droid", "horizon": HORIZON} | facts
    return find(str(folder), Facts(**told))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rebuilt("openpi_jax_pi05_droid", tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_jax_checkpoints_answers_are_the_librarys(config: str, tmp_path: Path) -> None:
    truth = recorded(f"openpi_jax_{config}")
    folder = rebuilt(f"openpi_jax_{config}", tmp_path)

    assert parity(read(folder, robot=truth["robot"]), truth) <= CONFIGS[config]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_jax_checkpoint_has_the_weights_of_the_converted_one(config: str, tmp_path: Path) -> None:
    robot = recorded(f"openpi_{config}")["robot"]
    converted = read(rebuilt(f"openpi_{config}", tmp_path), robot=robot, horizon=None)

    jax = read(rebuilt(f"openpi_jax_{config}", tmp_path), robot=robot)

    theirs = converted.model.state_dict()
    assert theirs.keys() == jax.model.state_dict().keys()
    for name, value in jax.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    assert jax.eager
    assert converted.eager
    assert jax.eager.arguments == converted.eager.arguments


def test_bfloat16_is_read_as_it_was_written(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "pi05"))
    bias = np.arange(32, dtype=np.float32) / 8
    write(folder, "action_in_proj.bias", bias.astype(tensorstore.bfloat16.numpy_dtype))

    source = read(folder)

    assert source.model.state_dict()["action_in_proj.bias"].tolist() == bias.tolist()


def test_what_an_openpi_jax_policy_says_of_itself(sound: Path) -> None:
    about = read(sound, denoising_steps=3).provenance["imported"]

    assert about["type"] == "pi05"
    assert about["denoising_steps"] == 3
    assert {"params/_METADATA", "params/manifest.ocdbt"} < about["sha256"].keys()
    assert about["ignored_weights"] == 1


def write(folder: Path, name: str, values: np.ndarray) -> None:
    """Write an array into a checkpoint, over the one that is there."""
    store = {
        "driver": "ocdbt",
        "base": (folder / "params").as_uri() + "/",
        "path": f"params.{name}/",
    }
    spec = {"driver": "zarr", "kvstore": store}
    made = tensorstore.open(
        spec, create=True, delete_existing=True, dtype=values.dtype, shape=values.shape
    ).result()
    made.write(values).result()


def metadata(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "params" / "_METADATA", change)


def entry(*names: str) -> str:
    return str(("params", *names))


def without(*names: str) -> Callable[[Path], None]:
    return metadata(lambda found: found["tree_metadata"].pop(entry(*names)))


def lora(folder: Path) -> None:
    names = ("PaliGemma", "llm", "layers", "attn", "q_einsum", "lora_a")
    write(folder, ".".join(names), np.zeros((2, 4, 64, 4), np.float32))
    named = {"key_metadata": [{"key": name, "key_type": 2} for name in ("params", *names)]}
    edit_json(
        folder / "params" / "_METADATA", lambda found: found["tree_metadata"].update({entry(*names): named})
    )


def narrower(folder: Path) -> None:
    write(folder, "action_out_proj.kernel", np.zeros((16, 32), np.float32))


def fewer_axes(folder: Path) -> None:
    write(folder, "PaliGemma.llm.layers.mlp.linear", np.zeros((128, 64), np.float32))


def one_gate(folder: Path) -> None:
    write(folder, "PaliGemma.llm.layers.mlp_1.gating_einsum", np.zeros((2, 1, 32, 64), np.float32))


def one_layer(folder: Path) -> None:
    write(folder, "PaliGemma.llm.layers.mlp.linear", np.zeros((1, 128, 64), np.float32))


def whole_numbers(folder: Path) -> None:
    write(folder, "action_out_proj.kernel", np.zeros((32, 32), np.int32))


def cut(folder: Path) -> None:
    largest = max((folder / "params").rglob("d/*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:400_000])


def cut_manifest(folder: Path) -> None:
    file = folder / "params" / "manifest.ocdbt"
    file.write_bytes(file.read_bytes()[:50])


DAMAGED = r"params is damaged or not whole: \S+ can't be read: \S"
BROKEN: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "no horizon": (
        lambda _: None,
        {"horizon": None},
        r"does not say how many actions .*: give --horizon, the action_horizon .*; got None$",
    ),
    "no actions": (lambda _: None, {"horizon": 0}, r"give --horizon, .*; got 0$"),
    "another robot": (lambda _: None, {"robot": "aloha"}, r"a pi0\.5 reads ALOHA's grippers"),
    "no statistics": (lambda f: shutil.rmtree(f / "assets"), {}, r"has no assets/<asset>/norm_stats\.json"),
    "missing key": (
        without("time_mlp_in", "bias"),
        {},
        r"does not fit a pi0\.5 of openpi's: missing keys \(1\): time_mlp_in/bias$",
    ),
    "missing layers": (
        without("PaliGemma", "llm", "layers", "mlp_1", "linear"),
        {},
        r"does not fit a pi0\.5 of openpi's: missing keys \(1\): PaliGemma/llm/layers/mlp_1/linear$",
    ),
    "lora": (
        lora,
        {},
        r"does not fit a pi0\.5 .*: unknown keys \(1\): PaliGemma/llm/layers/attn/q_einsum/lora_a$",
    ),
    "neither": (
        metadata(lambda found: found.update(tree_metadata={})),
        {},
        r"does not fit a pi0 of openpi's: missing keys \(50\): PaliGemma/img/",
    ),
    "wrong shape": (
        narrower,
        {},
        r"other shapes \(1\): action_out_proj/kernel, as action_out_proj\.weight \[32, 16\] instead of "
        r"\[32, 32\]$",
    ),
    "fewer axes": (fewer_axes, {}, r"other shapes \(1\): PaliGemma/llm/layers/mlp/linear \[128, 64\]$"),
    "one gate": (one_gate, {}, r"other shapes \(1\): \S+/mlp_1/gating_einsum \[2, 1, 32, 64\]$"),
    "one layer": (
        one_layer,
        {},
        r"missing keys \(1\): \S+language_model\.layers\.1\.mlp\.down_proj\.weight$",
    ),
    "whole numbers": (whole_numbers, {}, r"action_out_proj/kernel is of type int32; read are: bfloat16"),
    "no metadata": (
        lambda f: (f / "params" / "_METADATA").unlink(),
        {},
        r"_METADATA is missing: .* is not what orbax saved, or not all of it$",
    ),
    "metadata of text": (
        lambda f: (f / "params" / "_METADATA").write_text("{"),
        {},
        r"_METADATA is not JSON: ",
    ),
    "other metadata": (
        metadata(lambda found: found.pop("tree_metadata")),
        {},
        r"_METADATA has no tree_metadata: it is of another version of orbax$",
    ),
    "other names": (
        metadata(lambda found: found.update(tree_metadata={"a": {"path": "b"}})),
        {},
        r"names its arrays in another way, as of another version of orbax$",
    ),
    "zarr 3": (
        metadata(lambda found: found.update(use_zarr3=True)),
        {},
        r"arrays are read from zarr 2 in OCDBT \(manifest\.ocdbt\) alone$",
    ),
    "no OCDBT": (
        lambda f: (f / "params" / "manifest.ocdbt").unlink(),
        {},
        r"arrays are read from zarr 2 in OCDBT \(manifest\.ocdbt\) alone$",
    ),
    "no data": (lambda f: shutil.rmtree(f / "params" / "ocdbt.process_0"), {}, DAMAGED),
    "data cut short": (cut, {}, DAMAGED),
    "manifest cut short": (cut_manifest, {}, DAMAGED),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_jax_checkpoint_is_one_line(sound: Path, tmp_path: Path, fault: str) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "pi05"))
    damage, facts, message = BROKEN[fault]
    damage(folder)

    refused_in_one_line(lambda path: read(path, **facts), folder, message)


def test_a_converted_folder_says_its_horizon_itself(tmp_path: Path) -> None:
    folder = rebuilt("openpi_pi05_droid", tmp_path)

    refused_in_one_line(
        read, folder, r"--horizon is of JAX's checkpoints; .*config\.json has action_horizon$"
    )


def test_a_refusal_of_a_jax_checkpoint_writes_nothing(sound: Path, tmp_path: Path) -> None:
    folder, output = Path(shutil.copytree(sound, tmp_path / "pi05")), tmp_path / "store" / "pi05.mar"
    cut(folder)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    command = [sys.executable, "-m", "export", "--from", "openpi", folder, "--robot", "droid"]
    command += ["--names", folder / "meta" / "names.json", "--margin", "20", "--tokenizer", TOKENIZER]
    command += ["--horizon", HORIZON, "--output", output]

    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("export refused: ")
    assert done.stderr.count("\n") == 1
    assert not output.parent.exists()
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_without_tensorstore_the_extra_is_named(sound: Path) -> None:
    program = (
        "import sys; sys.modules['tensorstore'] = None\n"
        "from pathlib import Path\n"
        "from export.foreign.openpi_jax import JaxWeights\n"
        f"JaxWeights(Path({json.dumps(str(sound))}))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.stderr.splitlines()[-1].endswith(
        "reading JAX's params needs tensorstore: pip install -e '.[jax]', or give a folder that openpi's "
        "examples/convert_jax_model_to_pytorch.py made"
    ), done.stderr
