"""What there is to say about a scene, against scenes that a reader can check."""

import numpy as np
import pytest

from vla.tabletop.commands import COLOURS, GOALS, Goal
from vla.tabletop.texts import KINDS, LONGEST, PATTERNS, PIECES, Scene, ask, beside, caption, encode, held
from vla.tabletop.vocabulary import Split

# Along the picture from left to right: blue, red, yellow, green; red is the furthest from the camera.
BLOCKS = np.array([[-0.1, -0.05, 0.025], [0.04, 0.15, 0.025], [0.02, -0.17, 0.025], [0.0, 0.05, 0.025]])
SCENE = Scene(BLOCKS, np.array([0.03, 0.14, 0.15, 1.0]))
HOLDING = Scene(BLOCKS, np.array([0.021, -0.169, 0.024, 0.625]))


def asked(kind, scene=SCENE, count=200, split: Split = "test"):
    found = [ask(np.random.default_rng(seed), kind, scene, split) for seed in range(count)]
    return {each.question.rstrip("?"): each.answer for each in found if each}


def test_captions_tell_the_next_block_and_what_is_done():
    where = "the red block is left of the yellow one"
    assert caption(SCENE, Goal("lift", "red")) == f"{where}; I lift the red block"
    where = "the green block is right of the yellow one"
    assert caption(SCENE, Goal("push", "green")) == f"{where}; I push the green block"
    assert beside(SCENE, "blue") == ("red", "left")


@pytest.mark.parametrize(
    ("kind", "question", "answer"),
    [
        ("side", "do you see the red block left of the green cube", "yes"),
        ("side", "do you see the red block right of the green cube", "no"),
        ("side", "does the green one lie to the right of the blue block", "yes"),
        ("depth", "does the red one lie behind the blue one", "yes"),
        ("depth", "does the red one lie in front of the blue one", "no"),
        ("nearest", "which block is closest to your gripper", "green"),
        ("count", "how many blocks do you see left of the green one", "three"),
        ("count", "how many blocks do you see right of the green one", "none"),
        ("count", "how many cubes do you see right of the blue one", "three"),
        ("blocks", "how many blocks do you see", "four"),
    ],
)
def test_answers(kind, question, answer):
    assert asked(kind, count=3000)[question] == answer


def test_what_is_held_is_between_fingers_that_are_not_closed():
    assert held(HOLDING) == "blue"
    assert held(SCENE) is None
    assert held(HOLDING._replace(state=np.array([0.021, -0.169, 0.024, 1.0]))) is None
    assert held(HOLDING._replace(state=np.array([0.021, -0.169, 0.024, 0.0]))) is None
    assert held(HOLDING._replace(state=np.array([0.021, -0.169, 0.124, 0.625]))) is None
    assert set(asked("held", HOLDING).values()) == {"blue"}
    assert set(asked("held").values()) == {"none"}
    assert len([1 for seed in range(200) if ask(np.random.default_rng(seed), "held", SCENE, "test")]) < 90


def test_what_is_nearly_undecided_is_not_asked():
    near = BLOCKS.copy()
    near[3] = near[1] - [0.01, 0.012, 0]  # yellow beside green, and as far from the camera
    scene = SCENE._replace(blocks=near)
    for kind in ("side", "depth"):
        for question in asked(kind, scene, 500):
            assert not {"yellow", "green"} <= set(question.split())
    assert asked("nearest", scene) == {}


def test_no_pattern_of_the_test_is_trained_and_every_word_of_it_is():
    for kind in KINDS:
        assert not set(PATTERNS[kind].train) & set(PATTERNS[kind].test)
        assert not set(asked(kind, split="train")) & set(asked(kind))
    trained = {word for kind in KINDS for pattern in PATTERNS[kind].train for word in pattern.split()}
    assert {word for kind in KINDS for pattern in PATTERNS[kind].test for word in pattern.split()} <= trained


def test_texts_are_spelled_by_their_pieces():
    texts = [caption(SCENE, goal) for goal in GOALS] + ["yes", "none", *COLOURS]
    for text in texts:
        indices = encode(text)
        assert len(indices) == LONGEST
        assert indices[-1] == 0
        assert "".join(PIECES[index] for index in indices).strip() == text
    with pytest.raises(ValueError, match="at most"):
        encode("the " * LONGEST)
    with pytest.raises(ValueError, match="not in"):
        encode("the purple block")
