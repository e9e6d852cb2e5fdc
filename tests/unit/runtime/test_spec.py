"""`policy.json`: what it may say, in which words it is refused, and the format before this one."""

import json
import shutil
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import torch
from action_spaces import QUATERNION, SYMBOLS, space, spec
from torch import Tensor

from vla_runtime.errors import SpecError
from vla_runtime.policy import Policy
from vla_runtime.spec import ActionSpace, Camera, Dimension, PolicySpec, Rotation, Safety, Tokenizer

FORMAT_1 = Path(__file__).parent / "data" / "policy_format_1.json"


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"width": 96', '"width": "96"', r"Expected `int`, got `str` - at `\$\.cameras\[0\]\.width`"),
        ('"horizon": 4', '"horizont": 4', r"Object contains unknown field `horizont` - at `\$\.action`"),
        ('"horizon": 4', '"horizon": 0', r"horizon must be positive, got 0 - at `\$\.action`"),
        ('"low": -0.03', '"low": 0.03', r"delta_x: needs low < high, got 0\.03 and 0\.03"),
        ('"mode": "clamp"', '"mode": "hold"', r"safety\.mode 'hold' needs a safety\.hold_action for delta_x"),
        (
            '"actions",',
            '"action",',
            r"outputs \['action'\] need a declaration each in extras, which has \[\]",
        ),
    ],
)
def test_contradictory_spec_is_refused(copied: Path, old: str, new: str, message: str) -> None:
    path = copied / "policy.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))

    with pytest.raises(SpecError, match=message):
        PolicySpec.load(copied)


@pytest.mark.parametrize(
    ("action", "safety", "message"),
    [
        (SYMBOLS, Safety(hold_action="sleep"), r"^unknown action 'sleep'; available: navigate_to, pick_up, "),
        (SYMBOLS, Safety(hold_action=(0.0,)), r"^safety\.hold_action must name an action, got \(0\.0,\)"),
        (SYMBOLS, Safety(max_step=(1.0,)), r"^safety\.max_step has no meaning for discrete actions"),
        (SYMBOLS, Safety(min_confidence=0.5), r"^safety\.min_confidence needs a safety\.hold_action"),
        (space(), Safety(hold_action="stop"), r"^safety\.hold_action has 4 values for the action \('x', "),
        (
            space(names=QUATERNION, rotations=(Rotation(kind="quaternion", dimensions=QUATERNION),)),
            Safety(hold_action=(0, 1, 0, 0, 0, 0.5)),
            r"^safety\.hold_action .* holds a rotation that is none",
        ),
        (
            space(names=QUATERNION, rotations=(Rotation(kind="quaternion", dimensions=QUATERNION),)),
            Safety(max_step=(0.1, None, None, None, None, 0.1)),
            r"^safety\.max_step limits qw, a part of a rotation",
        ),
    ],
)
def test_contradictory_safety_is_refused(action: ActionSpace, safety: Safety, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(action, safety)


@pytest.mark.parametrize(
    ("action", "given", "message"),
    [
        (SYMBOLS, {"outputs": ("actions",)}, r"^outputs must name 'logits', got \('actions',\)"),
        (space(), {"outputs": ("logits",)}, r"^outputs must name 'actions', got \('logits',\)"),
        (
            space(),
            {"outputs": ("actions", "skill")},
            r"^outputs \['skill'\] need a declaration each in extras, which has \[\]",
        ),
    ],
)
def test_contradictory_outputs_are_refused(action: ActionSpace, given: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(action, **given)


def format_1(spec: dict) -> None:
    """Say the same as a spec of five fixed inputs in the words of format 1, in place."""
    spec["format_version"] = 1
    for name in ("history", "noise"):
        del spec[name]
    for camera in spec["cameras"]:
        camera |= {"size": camera.pop("width"), "resize": "shortest_edge_crop"}
        for name in ("height", "interpolation", "values"):
            del camera[name]
    for name in ("padding", "side", "template"):
        del spec["tokenizer"][name]
    for vector in (spec["state"], spec["action"]):
        for name in ("epsilon", "padded_to"):
            del vector[name]
        for name in ("low", "high"):
            del vector["statistics"][name]
        for dimension in vector["dimensions"]:
            for name in ("meaning", "state", "relative"):
                dimension.pop(name, None)
    for name in ("command", "inputs", "tf32", "factory", "arguments", "compiled"):
        del spec["artifact"][name]
    spec["artifact"]["stochastic"] = False


class FiveInputs(torch.nn.Module):
    """A module as format 1 knew it: `act` takes noise, whether or not it reads any."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.module = module

    @torch.jit.export
    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.module.encode_command(input_ids, attention_mask)

    @torch.jit.export
    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        assert noise.shape[1] == 0
        return self.module.act(images[:, 0], command, command_mask, state)


def test_an_archive_of_format_1_answers_as_recorded(copied: Path) -> None:
    path = copied / "policy.json"
    spec = json.loads(path.read_text())
    assert spec["artifact"]["inputs"] == ["image.front", "command.command", "command.command_mask", "state"]
    format_1(spec)
    path.write_text(json.dumps(spec))
    module = torch.jit.script(FiveInputs(torch.jit.load(str(copied / "policy.ts"))))
    module.save(str(copied / "policy.ts"))

    Policy.load(copied)  # replays the example


def test_a_spec_that_format_1_wrote_is_read(tmp_path: Path) -> None:
    """Written by the export of commit 4fa2c48."""
    shutil.copy(FORMAT_1, tmp_path / "policy.json")

    spec = PolicySpec.load(tmp_path)

    (camera,) = spec.cameras
    assert (camera.width, camera.height, camera.resize, camera.interpolation) == (96, 96, "crop", "bicubic")
    assert (spec.format_version, spec.history, spec.noise) == (2, 1, None)
    assert spec.artifact.command == ("command", "command_mask")
    assert spec.artifact.inputs == ("images", "command.command", "command.command_mask", "state", "noise")
    assert spec.tokenizer is not None
    assert (spec.tokenizer.template, spec.tokenizer.padding) == ("{command}", "fixed")


def test_noise_of_format_1_has_the_chunks_shape(tmp_path: Path) -> None:
    spec = json.loads(FORMAT_1.read_text())
    spec["artifact"]["stochastic"] = True
    (tmp_path / "policy.json").write_text(json.dumps(spec))

    assert PolicySpec.load(tmp_path).noise == (8, 4)


@pytest.mark.parametrize("part", ["cameras", "action", "artifact"])
def test_format_1_that_lacks_a_part_is_refused(tmp_path: Path, part: str) -> None:
    spec = json.loads(FORMAT_1.read_text())
    del spec[part]
    (tmp_path / "policy.json").write_text(json.dumps(spec))

    with pytest.raises(SpecError, match=rf"^policy\.json of format 1 lacks '{part}'$"):
        PolicySpec.load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"max_step": (-0.01, None)},
            r"^safety\.max_step of x must be positive, got -0\.01",
        ),
        (
            {"hold_action": (0.5, 0.0)},
            r"^safety\.hold_action holds x at 0\.5, outside its bounds -0\.03 and 0\.03 m",
        ),
        ({"hold_action": (0.0,)}, r"^safety\.hold_action has 1 values for the action \('x', 'gripper'\)"),
        ({"max_step": (0.1,) * 3}, r"^safety\.max_step has 3 values for the action \('x', 'gripper'\)"),
        ({"mode": "hold"}, r"^safety\.mode 'hold' needs a safety\.hold_action for x, which says neither by"),
        (
            {"hold_action": (0.0, 0.0), "hold_keeps": ("hand",)},
            r"^safety\.hold_keeps names hand; the action has x, gripper",
        ),
        ({"min_confidence": 0.5}, r"^safety\.min_confidence needs an artifact that returns 'confidence'"),
    ],
)
def test_limits_that_protect_nobody_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(space(), Safety(**fields))


@pytest.mark.parametrize("meaning", ["delta", "velocity"])
def test_what_rests_by_its_meaning_needs_no_declared_hold(meaning: Literal["delta", "velocity"]) -> None:
    resting = Dimension(name="x", unit="m", low=-1, high=1, meaning=meaning)
    other = msgspec.structs.replace(resting, name="y")
    moves = space(dimensions=(resting, other), normalisation="identity")

    assert spec(moves, Safety(mode="hold")).safety.mode == "hold"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"template": "do it"}, r"^template needs '\{command\}' exactly once, got 'do it'"),
        ({"template": "{command}{state}{state}"}, r"^template takes '\{state\}' once at most"),
        ({"state_bins": 0}, r"^state_bins must be positive, got 0"),
        ({"context_length": 0}, r"^context_length must be positive, got 0"),
    ],
)
def test_contradictory_tokenizer_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Tokenizer(**{"file": "t.json", "context_length": 8, "pad_id": 0} | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, r"^camera 'a': width and height must be positive, got 0 and 8"),
        ({"std": (1.0, 0.0, 1.0)}, r"^camera 'a': std must be positive, got \(1\.0, 0\.0, 1\.0\)"),
        ({"name": "a b"}, r"^camera 'a b': the name must be letters, digits and _"),
    ],
)
def test_contradictory_camera_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Camera(**{"name": "a", "width": 8, "height": 8} | fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"inputs": ("image.back",)},
            r"^artifact\.inputs names \['image\.back'\]; there are: image\.front, ",
        ),
        ({"command": ()}, r"^artifact\.inputs names \['command\.words'\]"),
        ({"command": (), "inputs": ("image.front",)}, r"^artifact\.command is \(\), and the tokenizer set"),
    ],
)
def test_inputs_that_no_request_brings_are_refused(given: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(space(), **given)


@pytest.mark.parametrize("history", [2, 3])
def test_an_example_needs_a_file_a_step(history: int) -> None:
    tiny = spec(space())
    example = msgspec.structs.replace(tiny.example, images={"front": ("a.png",)})

    with pytest.raises(SpecError, match=rf"^example\.images of 'front' needs {history} files, got 1"):
        msgspec.structs.replace(tiny, history=history, example=example)


def test_an_example_names_only_cameras() -> None:
    tiny = spec(space())
    example = msgspec.structs.replace(tiny.example, images={"back": "a.png"})

    with pytest.raises(SpecError, match=r"^example\.images names 'back'; the cameras are front$"):
        msgspec.structs.replace(tiny, example=example)


@pytest.mark.parametrize("data", [b'{"name": "\xed\xa0\x80"}', b'{"name": ' + b"[" * 10_000, b"\xff", b""])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "policy.json").write_bytes(data)

    with pytest.raises(SpecError, match=r"^policy\.json: "):
        PolicySpec.load(tmp_path)
