"""`policy.json`: what it may say, in which words it is refused, and the format before this one."""

import shutil
from pathlib import Path

import pytest
from action_spaces import QUATERNION, SYMBOLS, space, spec

from vla_runtime.errors import SpecError
from vla_runtime.spec import ActionSpace, PolicySpec, Rotation, Safety


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
