"""Broken and foreign folders: one clear line each, and nothing written."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.folders import edit_json, edit_weights, rebuilt
from making import export_refused
from safetensors.torch import load_file, save_file

from export.errors import ExportError
from export.find import find
from export.foreign.facts import Facts
from vla_runtime.spec import ContinuousSpace

NORMALIZER = "policy_preprocessor_step_3_normalizer_processor.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rebuilt("act", tmp_path_factory.mktemp("sound"))


def config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", change)


def no_processors(folder: Path) -> None:
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def disguised(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))


def another_step(folder: Path) -> None:
    step = {"registry_name": "my_crop_processor", "config": {}}
    edit_json(folder / "policy_preprocessor.json", lambda found: found["steps"].insert(0, step))


def own_class(folder: Path) -> None:
    step = {"class": "my_robot.Flip", "config": {}}
    edit_json(folder / "policy_postprocessor.json", lambda found: found["steps"].append(step))


def nothing_normalised(folder: Path) -> None:
    no_processors(folder)
    edit_json(folder / "config.json", lambda found: found.pop("normalization_mapping"))


def no_modes(folder: Path) -> None:
    def drop(found: dict[str, Any]) -> None:
        (step,) = (s for s in found["steps"] if s["registry_name"] == "normalizer_processor")
        del step["config"]["norm_map"]

    edit_json(folder / "policy_preprocessor.json", drop)


def half_statistics(folder: Path) -> None:
    tensors = load_file(folder / NORMALIZER)
    del tensors["observation.state.std"]
    save_file(tensors, folder / NORMALIZER)


def wide_statistics(folder: Path) -> None:
    tensors = load_file(folder / NORMALIZER)
    tensors["observation.state.mean"] = torch.zeros(7)
    save_file(tensors, folder / NORMALIZER)


def lost_statistics(folder: Path) -> None:
    (folder / NORMALIZER).unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


BROKEN = {
    "no statistics": (
        no_processors,
        r"has no policy_preprocessor\.json and no policy_postprocessor\.json, so",
    ),
    "no statistics and no modes": (
        nothing_normalised,
        r"has no policy_preprocessor\.json and no policy_postprocessor\.json, so no statistics",
    ),
    "no modes": (
        no_modes,
        r"normalizer_processor has no norm_map, so nothing says how .* is normalised",
    ),
    "lost statistics": (lost_statistics, r"normalizer_processor\.safetensors is missing"),
    "half statistics": (
        half_statistics,
        r"observation\.state is normalised by MEAN_STD, and .* has no mean and",
    ),
    "wide statistics": (wide_statistics, r"has 7 values observation\.state\.mean, and config\.json says 6"),
    "wrong shapes": (
        config(lambda found: found.update(dim_feedforward=96)),
        r"other shapes \(9\): model\.decoder\.layers\.0\.linear1\.bias \[64\] instead of \[96\].*3 more",
    ),
    "missing key": (
        lambda folder: edit_weights(folder, lambda found: found.pop("model.action_head.bias")),
        r"does not fit its config\.json: missing keys \(1\): model\.action_head\.bias$",
    ),
    "extra key": (
        lambda folder: edit_weights(
            folder, lambda found: found.update({"model.lora.weight": torch.zeros(1)})
        ),
        r"does not fit its config\.json: unknown keys \(1\): model\.lora\.weight$",
    ),
    "unknown type": (
        config(lambda found: found.update(type="tdmpc")),
        r"is a policy of type 'tdmpc'; read are: act",
    ),
    "newer format": (
        config(lambda found: found.update(use_registers=True)),
        r"fields that are not known here, as of a newer LeRobot: use_registers;",
    ),
    "older format": (
        config(lambda found: found.pop("pre_norm")),
        r"has no 'pre_norm': it is of another version",
    ),
    "pickle": (pickled, r"has its weights in pytorch_model\.bin, a pickle, which can run code"),
    "disguised pickle": (disguised, r"model\.safetensors is a pickle by its first bytes, which can run code"),
    "cut short": (cut_short, r"model\.safetensors can't be read as safetensors"),
    "unknown step": (
        another_step,
        r"has a step 'my_crop_processor', and what it does to a request is not known",
    ),
    "own class": (own_class, r"has a step 'my_robot\.Flip', and what it does"),
    "unknown mode": (
        lambda folder: edit_json(
            folder / "policy_postprocessor.json",
            lambda found: found["steps"][0]["config"]["norm_map"].update(ACTION="LOG"),
        ),
        r"action is normalised by LOG, which is not known here",
    ),
    "another backbone": (
        config(lambda found: found.update(vision_backbone="resnet50")),
        r"vision_backbone is 'resnet50'; read are: resnet18, resnet34",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors$"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing$"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not JSON"),
    "environment state": (
        config(
            lambda found: found["input_features"].update(
                {"observation.environment_state": {"type": "ENV", "shape": [3]}}
            )
        ),
        r"wants observation\.environment_state \(ENV\), which no request can carry",
    ),
    "no shape": (
        config(lambda found: found["output_features"]["action"].pop("shape")),
        r"config\.json: Object missing required field `shape`",
    ),
    "text for a number": (
        config(lambda found: found.update(dim_model="wide")),
        r"config\.json: Expected `int`, got `str` - at `\$\.dim_model`",
    ),
    "steps of no kind": (
        lambda folder: edit_json(
            folder / "policy_preprocessor.json", lambda found: found.update(steps=["x"])
        ),
        r"policy_preprocessor\.json: Expected `object`, got `str` - at `\$\.steps\[0\]`",
    ),
    "few names": (
        lambda folder: edit_json(
            folder / "meta" / "info.json", lambda found: found["features"]["action"]["names"].pop()
        ),
        r"has 5 names for the 6 dimensions of the action",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_is_one_line(sound: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "act"
    shutil.copytree(sound, folder)
    damage, message = BROKEN[fault]
    damage(folder)

    with pytest.raises(ExportError) as refused:
        find(str(folder), Facts(origin="lerobot", names=folder / "meta" / "info.json", margin=1.0))

    assert re.search(message, str(refused.value)), refused.value
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"^export refused: .*does not name the dimensions .* give --names FILE"),
        (
            ["--names", "meta/info.json"],
            r"^export refused: nothing says the limits of shoulder_pan\.pos .*--margin",
        ),
        (["--names", "none.json"], r"^export refused: none\.json is missing"),
        (["--names", "names.json"], r"^export refused: names\.json: .*`actions`"),
        (
            ["--names", "rate.json", "--margin", "1"],
            r"^export refused: nothing says how often .* --control-hz",
        ),
    ],
)
def test_what_a_folder_does_not_say_is_asked_for(
    sound: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    for name in ("config.json", "model.safetensors", "meta", *(file.name for file in sound.glob("policy_*"))):
        (tmp_path / name).symlink_to(sound / name)
    (tmp_path / "names.json").write_text('{"actions": []}')
    joints = json.dumps([f"joint_{number}" for number in range(6)])
    (tmp_path / "rate.json").write_text(f'{{"action": {joints}, "state": {joints}}}')
    arguments = ["--from", "lerobot", ".", *options, "--output", "store/out.mar"]

    export_refused(message, *arguments, cwd=tmp_path)

    assert not (tmp_path / "store").exists()


def test_a_names_file_bounds_and_explains(sound: Path, tmp_path: Path) -> None:
    joints = [{"name": f"joint_{number}", "unit": "deg", "low": -1, "high": 2} for number in range(6)]
    joints[0] |= {"meaning": "absolute", "state": "state_0"}
    (tmp_path / "names.json").write_text(
        json.dumps({"action": joints, "state": [f"state_{number}" for number in range(6)], "control_hz": 20})
    )

    source = find(str(sound), Facts(origin="lerobot", names=tmp_path / "names.json", margin=0.0))

    assert isinstance(source.action, ContinuousSpace)
    first = source.action.dimensions[0]
    assert (first.name, first.unit, first.low, first.high, first.state) == (
        "joint_0",
        "deg",
        -1,
        2,
        "state_0",
    )
    assert source.action.control_hz == 20
    statistics = load_file(sound / NORMALIZER)
    assert source.state
    low = [dimension.low for dimension in source.state.dimensions]
    assert low == pytest.approx(statistics["observation.state.min"].tolist())


def test_identity_needs_no_statistics(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "act"
    shutil.copytree(sound, folder)
    no_processors(folder)
    modes = {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "IDENTITY"}
    edit_json(folder / "config.json", lambda found: found.update(normalization_mapping=modes))
    joints = [{"name": f"joint_{number}", "low": -1, "high": 2} for number in range(6)]
    (folder / "names.json").write_text(json.dumps({"action": joints, "state": joints, "control_hz": 20}))

    source = find(str(folder), Facts(origin="lerobot", names=folder / "names.json"))

    assert isinstance(source.action, ContinuousSpace)
    assert source.action.normalisation == "identity"
    assert source.cameras[0].values == "zero_to_one"


def test_ddpm_is_told_and_its_steps_can_be_fewer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = rebuilt("diffusion_ddpm", tmp_path)
    names = folder / "meta" / "info.json"

    source = find(str(folder), Facts(origin="lerobot", names=names, margin=1.0, denoising_steps=4))

    said = capsys.readouterr().out
    assert said.startswith("note: trained for DDPM, which draws noise at every step; served by DDIM")
    found = source.provenance["imported"]
    assert (found["scheduler"], found["denoising_steps"]) == ("DDIM", 4)
    assert found["notes"][0] in said
    assert (source.history, source.noise, source.action.horizon) == (2, (8, 6), 6)
    with pytest.raises(ExportError, match=r"denoising steps must be 1 to 12, the steps of training, got 13"):
        find(str(folder), Facts(origin="lerobot", names=names, margin=1.0, denoising_steps=13))


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear", "scaled_linear"])
def test_fewer_denoising_steps_still_end_at_a_clean_chunk(tmp_path: Path, schedule: str) -> None:
    folder = rebuilt("diffusion", tmp_path)
    edit_json(folder / "config.json", lambda found: found.update(beta_schedule=schedule))

    source = find(
        str(folder),
        Facts(origin="lerobot", names=folder / "meta" / "info.json", margin=1.0, denoising_steps=3),
    )

    images = {camera.name: torch.rand(1, 2, 3, 64, 96) for camera in source.cameras}
    model: Any = source.model
    with torch.inference_mode():
        chunk = model.act(images, {}, torch.zeros(1, 2, 6), torch.randn(1, 8, 6))["actions"]
    # The last step's signal has no noise left: what is clipped is within the clip's range.
    assert chunk.shape == (1, 6, 6)
    assert chunk.abs().max() <= 1
