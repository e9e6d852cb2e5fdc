"""What counts as true in what a policy says, and the table of it."""

from contextlib import closing

import numpy as np
import pytest

from vla.evaluation.policies import RandomPolicy
from vla.evaluation.text import FACTS, TextEvaluation, draw, judge, listen, markdown, show
from vla.tabletop.commands import COLOURS, Goal
from vla.tabletop.simulator import Tabletop
from vla.tabletop.texts import KINDS, Scene, caption, held
from vla_client import ActionChunk, Observation, SafetyReport
from vla_runtime.errors import SpecError

# Along the picture from left to right: blue, red, yellow, green.
BLOCKS = np.array([[-0.1, -0.05, 0.025], [0.04, 0.15, 0.025], [0.02, -0.17, 0.025], [0.0, 0.05, 0.025]])
SCENE = Scene(BLOCKS, np.array([0.03, 0.14, 0.15, 1.0]))
LIFT = Goal("lift", "red")


class Constant:
    """Says the same whatever it is told, and closes the fingers."""

    def __init__(self, text: str) -> None:
        self.text = text

    def infer(self, observation: Observation) -> ActionChunk:
        opening = np.asarray(observation.state)[3]
        action = np.array([[0.0, 0.0, 0.0, 1.0 if opening < 0.85 else -1.0]], np.float32)
        names = ("delta_x", "delta_y", "delta_z", "gripper")
        extras = {"text": self.text}
        return ActionChunk(
            action, names, 10.0, None, SafetyReport("ok"), {}, "constant", "1", "", extras=extras
        )


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("the red block is left of the yellow one; I lift the red block", "111111"),
        ("the red block is right of the blue one; I lift the red block", "101110"),
        ("the red block is right of the yellow one; I lift the red block", "110110"),
        ("the blue block is left of the yellow one; I push the blue block", "011000"),
        ("the red block is left of the purple one; I lift the red block", "100110"),
        ("the red block is left of the yellow one; I lift the red", "000000"),
        ("yes", "000000"),
        ("", "000000"),
    ],
)
def test_facts_of_a_caption(text: str, true: str) -> None:
    assert judge(text, SCENE, LIFT) == tuple(digit == "1" for digit in true)
    assert all(judge(caption(SCENE, LIFT), SCENE, LIFT))


def test_scenes_depend_on_their_seed_and_blocks_are_held_in_some() -> None:
    config = TextEvaluation(scenes=20)
    with closing(Tabletop()) as env:
        scenes = [show(env, config, index) for index in range(20)]
        again = show(env, config, 7)
    assert (again.picture == scenes[7].picture).all()
    assert again.goal == scenes[7].goal
    assert {held(shown.scene) for shown in scenes} & set(COLOURS)


def test_a_constant_answer_scores_as_the_most_frequent_one_does(tmp_path) -> None:
    config = TextEvaluation(archive=tmp_path / "vla.mar", scenes=12)
    config.archive.write_bytes(b"an archive")
    with closing(Tabletop()) as env:
        shown = [show(env, config, index) for index in range(12)]
    found = [said for index, each in enumerate(shown) for said in listen(Constant("four"), each, index)]

    rows = [line.split("|")[1:-1] for line in markdown(config, found).splitlines() if line.startswith("|")]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert set(cells) >= {*KINDS, *FACTS}
    assert cells["blocks"] == ["12", "100 [76, 100]", "100"]
    assert cells["side"][1].startswith("0 [")
    assert cells["all of these"][1].startswith("0 [")
    assert all(said.still for said in found)
    sheet = tmp_path / "sheet.png"
    draw(config, found, sheet)
    assert sheet.stat().st_size > 100_000


def test_a_policy_without_text_is_refused() -> None:
    with closing(Tabletop()) as env:
        shown = show(env, TextEvaluation(), 0)
    with pytest.raises(SpecError, match="random says no text: train an rt2 with --text-tokens 16"):
        list(listen(RandomPolicy(), shown, 0))
