"""openpi's pi0 and pi0.5: what the real library answers on each robot, and what is refused in one line."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.folders import TOKENIZER, edit_json, edit_weights, rebuilt, recorded
from golden.in_process import parity, row, served

from export.errors import ExportError
from export.find import find
from export.foreign import robots
from export.foreign.facts import Facts
from export.foreign.pi0 import aloha, model
from export.source import Source
from vla_runtime.errors import RequestError

CONFIGS = (
    "pi0_aloha",
    "pi0_aloha_sim",
    "pi0_libero",
    "pi05_droid",
    "pi05_full_droid_finetune",
    "pi05_libero",
)


def read(folder: Path, **facts: Any) -> Source:
    told: dict[str, Any] = {"names": folder / "meta" / "names.json", "margin": 20.0, "tokenizer": TOKENIZER}
    told |= {"origin": "openpi"} | facts
    return find(str(folder), Facts(**told))


@pytest.fixture(scope="module", params=CONFIGS)
def golden(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    name = f"openpi_{request.param}"
    return rebuilt(name, tmp_path_factory.mktemp("golden")), recorded(name)


def test_a_robots_answers_are_the_librarys(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, truth = golden
    assert parity(read(folder, robot=truth["robot"]), truth) <= 1e-5


def test_another_robot_gives_other_answers(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, truth = golden
    others = {"aloha": "aloha_sim", "libero": "libero_delta", "droid": "droid_joint_position"}
    others |= {other: robot for robot, other in others.items()}
    policy = served(read(folder, robot=others[truth["robot"]]))
    if "aloha" in truth["robot"]:
        assert {len(robots.ROBOTS[name].cameras) for name in ("aloha", "aloha_sim")} == {1, 3}
        return
    request = truth["requests"][0]

    (answer,) = policy.infer([row(truth, request)])

    assert not isinstance(answer, RequestError), answer.message
    assert (np.abs(answer.chunk.actions - request["actions"]) / truth["range"]).max() > 0.1


def test_an_eager_archive_builds_the_same_module(tmp_path: Path) -> None:
    source = read(rebuilt("openpi_pi0_aloha", tmp_path), robot="aloha")
    assert source.eager
    assert source.eager.factory == "pi0.aloha:build"

    built = aloha.build(**json.loads(json.dumps(source.eager.arguments))).eval()
    fresh = built.state_dict()
    built.load_state_dict(source.model.state_dict())

    assert isinstance(built.policy, model.Pi0)
    for name in ("signs", "mean", "std"):
        assert torch.equal(fresh[name], source.model.state_dict()[name])


def test_what_an_openpi_policy_says_of_itself(tmp_path: Path) -> None:
    folder = rebuilt("openpi_pi0_aloha", tmp_path)

    source = read(folder, robot="aloha", denoising_steps=3)

    about = source.provenance["imported"]
    assert (about["from"], about["type"], about["robot"]) == ("openpi", "pi0", "aloha")
    assert set(about["sha256"]) == {"config.json", "model.safetensors", "assets/trossen/norm_stats.json"}
    assert about["denoising_steps"] == 3
    assert [camera.name for camera in source.cameras] == ["cam_high", "cam_left_wrist", "cam_right_wrist"]
    assert {(camera.width, camera.resize) for camera in source.cameras} == {(224, "pad")}
    action = source.action.dimensions  # pyright: ignore[reportAttributeAccessIssue]
    assert [dimension.relative for dimension in action] == ([True] * 6 + [False]) * 2
    assert (action[3].meaning, action[3].state) == ("absolute", "s3")
    assert source.state
    gripper = source.state.dimensions[6]
    assert (gripper.low, gripper.high) == (-20.0, 21.0)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rebuilt("openpi_pi05_droid", tmp_path_factory.mktemp("sound"))


def config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", change)


def statistics(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(
        folder / "assets" / "droid" / "norm_stats.json", lambda found: change(found["norm_stats"])
    )


def names(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "meta" / "names.json", change)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, change)


def is_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(20))


def two_assets(folder: Path) -> None:
    shutil.copytree(folder / "assets" / "droid", folder / "assets" / "trossen")


def no_outer_layers(found: dict[str, torch.Tensor]) -> None:
    for key in list(found):
        if key.startswith("time_mlp"):
            found.pop(key)


def relative_velocity(found: dict[str, Any]) -> None:
    found["action"][0] = {"name": "a0", "meaning": "velocity"}


BROKEN: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "no robot": (
        lambda _: None,
        {"robot": None},
        r"give --robot, one of, .*: aloha \(pi0_aloha, .*libero_delta",
    ),
    "unknown robot": (lambda _: None, {"robot": "ur5"}, r"no robot 'ur5' is known; known are, .*: aloha \("),
    "aloha's grippers": (
        lambda _: None,
        {"robot": "aloha"},
        r"reads ALOHA's grippers in its prompt, .*: not read$",
    ),
    "no names": (lambda _: None, {"names": None}, r"does not name the dimensions .*: give --names FILE"),
    "names of another robot": (
        lambda _: None,
        {"robot": "libero"},
        r"has 8 names for the 7 dimensions of the action",
    ),
    "no limits": (
        lambda _: None,
        {"margin": None},
        r"nothing says the limits of s0 of the state: .* or --margin",
    ),
    "no rate": (names(lambda f: f.pop("control_hz")), {}, r"nothing says how often .*: give --control-hz$"),
    "no tokenizer": (
        lambda _: None,
        {"tokenizer": None},
        r"comes without its tokenizer: give --tokenizer FILE",
    ),
    "no statistics": (
        lambda f: shutil.rmtree(f / "assets"),
        {},
        r"has no assets/<asset>/norm_stats\.json, so no",
    ),
    "two assets": (two_assets, {}, r"has statistics of: droid, trossen; give --asset, one of them$"),
    "unknown asset": (lambda _: None, {"asset": "ur5e"}, r"has no statistics of 'ur5e'; it has: droid$"),
    "no quantiles": (
        statistics(lambda found: found["state"].update(q01=None)),
        {"names": "limits"},
        r"norm_stats\.json has no q01; it has: mean, q01, q99, std$",
    ),
    "no actions": (
        statistics(lambda found: found.pop("actions")),
        {},
        r"has no statistics of 'actions'; it has: state$",
    ),
    "no config": (
        lambda f: (f / "config.json").unlink(),
        {},
        r"config\.json is missing: openpi's converter writes it",
    ),
    "newer config": (
        config(lambda f: f.update(num_experts=2)),
        {},
        r"must have the fields .*; it has: .*num_experts$",
    ),
    "lora": (
        config(lambda f: f.update(paligemma_variant="gemma_2b_lora")),
        {},
        r"paligemma_variant is 'gemma_2b_lora'; read are: gemma_300m, gemma_2b$",
    ),
    "pickle": (is_pickle, {}, r"is a pickle by its first bytes"),
    "neither": (
        weights(no_outer_layers),
        {},
        r"no pi0's: neither action_time_mlp_out nor time_mlp_out is among them$",
    ),
    "missing key": (
        weights(lambda found: found.pop("time_mlp_in.bias")),
        {},
        r"does not fit its config\.json: missing keys \(1\): time_mlp_in\.bias$",
    ),
    "extra key": (
        weights(lambda found: found.update({"state_proj.bias": torch.zeros(32)})),
        {},
        r"does not fit its config\.json: unknown keys \(1\): state_proj\.bias$",
    ),
    "wrong shape": (
        config(lambda f: f.update(action_dim=24)),
        {},
        r"other shapes \(3\): action_in_proj\.weight",
    ),
    "no steps": (lambda _: None, {"denoising_steps": 0}, r"denoising steps must be 1 at least, got 0$"),
    "relative velocity": (
        names(relative_velocity),
        {"robot": "droid_joint_position"},
        r"a0 is an absolute target of s0 for this robot, and the names file calls it velocity of None$",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_openpi_folder_is_one_line(sound: Path, tmp_path: Path, fault: str) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "pi05"))
    damage, facts, message = BROKEN[fault]
    damage(folder)
    if facts.get("names") == "limits":
        bounded = [{"name": f"d{place}", "low": -9, "high": 9} for place in range(8)]
        edit_json(folder / "meta" / "names.json", lambda found: found.update(state=bounded, action=bounded))
        facts = {}

    with pytest.raises(ExportError) as refused:
        read(folder, **{"robot": "droid"} | facts)

    assert re.search(message, str(refused.value)), refused.value
    assert "\n" not in str(refused.value)


def test_a_refusal_writes_nothing(sound: Path, tmp_path: Path) -> None:
    output = tmp_path / "store" / "pi05.mar"
    command = [sys.executable, "-m", "export", "--from", "openpi", sound, "--output", output]

    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 1
    assert re.fullmatch(r"export refused: openpi's folder does not say .*\n", done.stderr), done.stderr
    assert not output.parent.exists()


def test_an_openpi_folder_without_its_option_is_named(sound: Path) -> None:
    with pytest.raises(
        ExportError, match=r"looks like a pi0 or pi0\.5 of openpi's: python -m export --from openpi"
    ):
        find(str(sound))
