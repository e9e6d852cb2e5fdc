"""LeRobot's relative actions, and its ACT of 0.6: what the real library answers, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden.folders import edit_json, read_pi, rebuilt, recorded
from golden.in_process import parity, refused_in_one_line
from safetensors.torch import load_file, save_file

from vla_runtime.spec import ContinuousSpace, Dimension


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rebuilt("pi0_relative", tmp_path_factory.mktemp("sound"))


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "pi0_relative"))


def actions(folder: Path) -> tuple[Dimension, ...]:
    space = read_pi(folder).action
    assert isinstance(space, ContinuousSpace)
    return space.dimensions


def test_answers_are_absolute_as_the_librarys(sound: Path) -> None:
    assert parity(read_pi(sound), recorded("pi0_relative")) <= 1e-5


def test_an_act_of_0_6_answers_as_the_library(tmp_path: Path) -> None:
    assert parity(read_pi(rebuilt("act_0_6", tmp_path), None), recorded("act_0_6")) <= 1e-5


def test_all_but_the_excluded_are_differences_from_the_state(sound: Path) -> None:
    source, found = read_pi(sound), actions(sound)

    assert source.state
    assert [dimension.relative for dimension in found] == [True] * 5 + [False]
    assert [dimension.state for dimension in found] == [*source.state.names[:5], None]
    for dimension, measured in list(zip(found, source.state.dimensions, strict=True))[:5]:
        assert (dimension.low, dimension.high) == (measured.low, measured.high)


def step(file: str, name: str, **fields: object) -> Callable[[Path], None]:
    """Return what changes fields of one step."""

    def edit(found: dict[str, Any]) -> None:
        (place,) = (s for s in found["steps"] if s["registry_name"] == name)
        place["config"].update(fields)

    return lambda folder: edit_json(folder / f"policy_{file}processor.json", edit)


def remembers(**fields: object) -> Callable[[Path], None]:
    return step("pre", "relative_actions_processor", **fields)


def test_without_the_actions_names_all_are_relative(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remembers(action_names=None)(folder)

    assert all(dimension.relative for dimension in actions(folder))
    assert "the folder names no actions, so LeRobot counts all from the state" in capsys.readouterr().out


def test_a_part_of_a_name_excludes_it_in_any_case(folder: Path) -> None:
    remembers(exclude_joints=["SHOULDER", ""], action_names=["Shoulder_pan.pos", "shoulder_lift.pos"])(folder)

    assert [dimension.relative for dimension in actions(folder)] == [False] * 2 + [True] * 4


def moved(file: str, name: str, place: int) -> Callable[[Path], None]:
    def edit(found: dict[str, Any]) -> None:
        (step,) = (s for s in found["steps"] if s["registry_name"] == name)
        found["steps"].remove(step)
        found["steps"].insert(place, step)

    return lambda folder: edit_json(folder / f"policy_{file}processor.json", edit)


def narrow_state(folder: Path) -> None:
    edit_json(folder / "config.json", lambda f: f["input_features"]["observation.state"].update(shape=[5]))
    edit_json(folder / "meta" / "info.json", lambda f: f["features"]["observation.state"]["names"].pop())
    for file in folder.glob("*normalizer_processor.safetensors"):
        found = load_file(file)
        save_file(
            {k: v[:5].clone() if k.startswith("observation.state") else v for k, v in found.items()}, file
        )


def velocity(folder: Path) -> None:
    edit_json(folder / "meta" / "info.json", lambda found: found.clear() or found.update(NAMES))


NAMES: dict[str, Any] = {
    "control_hz": 30,
    "state": [{"name": f"s{place}", "low": -900, "high": 900} for place in range(6)],
    "action": [{"name": f"a{place}", "low": -9, "high": 9, "meaning": "velocity"} for place in range(6)],
}
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "not added": (
        step("post", "absolute_actions_processor", enabled=False),
        r"contradicts itself: use_relative_actions is True .* and False of 'absolute_actions_processor'$",
    ),
    "not remembered": (
        remembers(enabled=False),
        r"contradicts itself: .*`enabled` is False of the step 'relative",
    ),
    "normalised state": (
        moved("pre", "relative_actions_processor", 99),
        r"must have 'relative_actions_processor' before 'normalizer_processor'$",
    ),
    "normalised actions": (
        moved("post", "absolute_actions_processor", 0),
        r"must have 'unnormalizer_processor' before 'absolute_actions_processor'$",
    ),
    "no names": (
        remembers(action_names="gripper"),
        r"policy_preprocessor\.json: Expected `array \| null`, got `str`",
    ),
    "another meaning": (
        velocity,
        r"a0 is an absolute target of s0 .*, and the names file calls it velocity of None$",
    ),
    "narrow state": (
        narrow_state,
        r"6 actions are differences from observation\.state, which has 5 dimensions$",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_contradicts_itself_is_one_line(folder: Path, fault: str) -> None:
    damage, message = BROKEN[fault]
    damage(folder)

    refused_in_one_line(read_pi, folder, message)
