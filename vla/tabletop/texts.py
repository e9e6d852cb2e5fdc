"""What there is to say about a scene: captions, questions and their answers, from what the simulator knows.

Left and right are as the camera shows them, and `in front of` is nearer to the camera. Patterns of the split
`test` are never trained; every word of theirs is. What is nearly undecided is neither asked nor said.
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from vla.tabletop.commands import COLOURS, TASKS, Goal
from vla.tabletop.expert import HELD_CEILING, HELD_OPENING, HELD_RADIUS
from vla.tabletop.phrasebook import Patterns
from vla.tabletop.vocabulary import Split, Words

# Kinds of questions: where one block lies from another, two of them; which is nearest to the hand; what is
# held; how many blocks lie on one side of another; how many blocks there are.
Question = Literal["side", "depth", "nearest", "held", "count", "blocks"]
KINDS: tuple[Question, ...] = get_args(Question)

# Blocks lie beside each other, or one in front of the other, from this distance on, and one is the nearest
# that is so much nearer than the next [m].
APART, NEARER = 0.02, 0.015
# The least opening of fingers that hold a block.
HOLDING = 0.5
# Share of the frames with nothing held that are asked what is held: else the answer were nearly always none.
EMPTY = 0.3
NUMBERS = ("none", "one", "two", "three", "four")

# What texts are made of: the end, then words with their spaces.
PIECES = ("", *(f" {word}" for word in (*COLOURS, *NUMBERS, *TASKS)), " yes", " no")
PIECES += (" the", " block", " is", " left", " right", " of", ";", " I")
# Pieces of the longest text with its end: a caption.
LONGEST = 16

# Slots: {a} and {b} colours, {n} and {m} nouns, {s} a side.
PATTERNS: dict[Question, Patterns] = {
    "side": Patterns(
        train=(
            "is the {a} {n} {s} of the {b} one",
            "is the {a} {n} to the {s} of the {b} {m}",
            "does the {a} {n} lie {s} of the {b} {m}",
            "do you see the {a} {n} on the {s} of the {b} one",
            "tell me if the {a} one is {s} of the {b} one",
        ),
        test=(
            "does the {a} one lie to the {s} of the {b} {n}",
            "do you see the {a} {n} {s} of the {b} {m}",
            "tell me if the {a} {n} is on the {s} of the {b} one",
        ),
    ),
    "depth": Patterns(
        train=(
            "is the {a} {n} {s} the {b} one",
            "does the {a} {n} lie {s} the {b} {m}",
            "do you see the {a} one {s} the {b} {n}",
            "can you tell me if the {a} {n} is {s} the {b} {m}",
        ),
        test=(
            "does the {a} one lie {s} the {b} one",
            "tell me if the {a} {n} is {s} the {b} one",
            "do you see the {a} {n} {s} the {b} {m}",
        ),
    ),
    "nearest": Patterns(
        train=(
            "which {n} is nearest to you",
            "which {n} is the nearest one to your hand",
            "what colour is the {n} nearest to your gripper",
            "what is the colour of the {n} that is closest to you",
            "tell me which {n} is closest to your hand",
        ),
        test=(
            "which {n} is closest to your gripper",
            "what colour is the {n} that is nearest to you",
            "tell me the colour of the {n} nearest to your hand",
        ),
    ),
    "held": Patterns(
        train=(
            "which {n} are you holding",
            "what are you holding now",
            "which {n} is in your gripper",
            "what do you hold in your hand",
            "tell me the colour of the {n} you hold",
        ),
        test=(
            "what is in your hand now",
            "which {n} do you hold",
            "tell me the colour of the {n} you are holding",
        ),
    ),
    "count": Patterns(
        train=(
            "how many {n}s are {s} of the {a} one",
            "how many {n}s lie to the {s} of the {a} {m}",
            "how many do you see on the {s} of the {a} {n}",
            "count the {n}s {s} of the {a} {m}",
        ),
        test=(
            "how many {n}s do you see {s} of the {a} one",
            "how many {n}s are to the {s} of the {a} {m}",
            "count the {n}s on the {s} of the {a} one",
        ),
    ),
    "blocks": Patterns(
        train=(
            "how many {n}s are there",
            "how many {n}s do you see on the table",
            "count the {n}s",
            "how many {n}s lie there in front of you",
        ),
        test=("how many {n}s do you see", "count the {n}s on the table", "how many {n}s lie on the table"),
    ),
}
NOUNS = ("block", "cube")


class Scene(NamedTuple):
    """One frame, in the table frame."""

    blocks: NDArray[np.floating]  # float [4, 3], the centres in the order of `COLOURS` [m]
    state: NDArray[np.floating]  # float [4], as `simulator.STATE`


class Asked(NamedTuple):
    """A question and what is right to answer."""

    question: str
    answer: str


def caption(scene: Scene, goal: Goal) -> str:
    """Say where the goal's block lies from the one beside it, and what will be done."""
    other, side = beside(scene, goal.colour)
    return f"the {goal.colour} block is {side} of the {other} one; I {goal.task} the {goal.colour} block"


def beside(scene: Scene, colour: str) -> tuple[str, str]:
    """Return the block that is nearest across the picture, and the side of it that this one lies on."""
    own = COLOURS.index(colour)
    across = scene.blocks[:, 1] - scene.blocks[own, 1]
    other = min((index for index in range(len(COLOURS)) if index != own), key=lambda each: abs(across[each]))
    return COLOURS[other], "left" if across[other] > 0 else "right"


def ask(random: np.random.Generator, kind: Question, scene: Scene, split: Split) -> Asked | None:
    """Ask about a scene; None where the answer is nearly undecided, or of little use."""
    drawn = _DRAWN[kind](random, scene)
    if drawn is None:
        return None
    slots, answer = drawn
    nouns = {name: NOUNS[random.integers(len(NOUNS))] for name in ("n", "m")}
    question = Words(random, split).pattern(PATTERNS[kind]).format(**slots, **nouns)
    return Asked(question + ("?" if random.random() < 0.7 else ""), answer)


def encode(text: str) -> list[int]:
    """Return a text's pieces: `LONGEST` indices into `PIECES`, filled up with the end.

    Raises:
        ValueError: a word is no piece, or the text is too long.
    """
    words = [
        part for word in text.replace(";", " ;").split() for part in (word if word == ";" else f" {word}",)
    ]
    indices = [PIECES.index(word) for word in words]
    if len(indices) >= LONGEST:
        raise ValueError(f"a text has {LONGEST - 1} words at most, got {text!r}")
    return indices + [PIECES.index("")] * (LONGEST - len(indices))


Drawn = tuple[dict[str, str], str] | None


def _side(random: np.random.Generator, scene: Scene) -> Drawn:
    return _compare(random, scene.blocks[:, 1], ("left", "right"))


def _depth(random: np.random.Generator, scene: Scene) -> Drawn:
    return _compare(random, scene.blocks[:, 0], ("behind", "in front of"))


def _compare(random: np.random.Generator, along: NDArray[np.floating], sides: tuple[str, str]) -> Drawn:
    """Ask whether one block lies on a side of another: the first side has the smaller numbers."""
    one, other = (int(index) for index in random.choice(len(COLOURS), 2, replace=False))
    away, side = along[one] - along[other], int(random.integers(2))
    if abs(away) < APART:
        return None
    slots = {"a": COLOURS[one], "b": COLOURS[other], "s": sides[side]}
    return slots, "yes" if (away > 0) == bool(side) else "no"


def _nearest(random: np.random.Generator, scene: Scene) -> Drawn:
    away = np.linalg.norm(scene.blocks - scene.state[:3], axis=1)
    first, second = np.argsort(away)[:2]
    return ({}, COLOURS[first]) if away[second] - away[first] >= NEARER else None


def _held(random: np.random.Generator, scene: Scene) -> Drawn:
    colour = held(scene)
    if colour is None and random.random() >= EMPTY:
        return None
    return {}, colour or "none"


def held(scene: Scene) -> str | None:
    """Return the block between the fingers, or None."""
    away = scene.state[:3] - scene.blocks
    across = np.hypot(away[:, 0], away[:, 1])
    nearest = int(across.argmin())
    between = across[nearest] <= HELD_RADIUS and abs(away[nearest, 2]) <= HELD_CEILING
    return COLOURS[nearest] if between and HOLDING <= scene.state[3] <= HELD_OPENING else None


def _count(random: np.random.Generator, scene: Scene) -> Drawn:
    own, side = int(random.integers(len(COLOURS))), int(random.integers(2))
    away = np.delete(scene.blocks[:, 1] - scene.blocks[own, 1], own)
    if np.abs(away).min() < APART:
        return None
    count = int((away > 0 if side else away < 0).sum())
    return {"a": COLOURS[own], "s": ("left", "right")[side]}, NUMBERS[count]


def _blocks(random: np.random.Generator, scene: Scene) -> Drawn:
    return {}, NUMBERS[len(scene.blocks)]


_DRAWN = {
    "side": _side,
    "depth": _depth,
    "nearest": _nearest,
    "held": _held,
    "count": _count,
    "blocks": _blocks,
}
