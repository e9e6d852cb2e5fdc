"""What a policy understands: commands, pictures, and that there is nothing to be done; a table of cells.

A cell is a kind of command or of picture. Its episodes run in scenes that training never uses, and its
commands are of the split `test` of `vla.tabletop.language`, whose patterns training never uses.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vla.evaluation.conditions import Trial
from vla.evaluation.episodes import GREY, Setup
from vla.tabletop.commands import GOALS, Goal, held_out, phrase
from vla.tabletop.language import IMPOSSIBLE, KINDS, Impossible, Kind, command, impossible
from vla.tabletop.looks import PLAIN, Look, draw_look

Picture = NDArray[np.uint8]
Disturbance = Callable[[Picture], Picture]
# Makes the look of an episode, from its seed and the blocks' centres.
MakeLook = Callable[[np.random.Generator, NDArray[np.float32]], Look]
Sayings = Kind | Impossible | Literal["seen", "held_out", "never"]
# Steps of an episode in which nothing is to be done.
STILL_STEPS = 5


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    name: str
    # Which kind of commands.
    says: Sayings
    # Whether the policy should act, and the least share of episodes in which it does what it should.
    acts: bool
    target: float | None
    look: MakeLook = lambda _random, _blocks: PLAIN
    disturb: Disturbance | None = None

    def trial(self, index: int, seed: int) -> Trial:
        """Make the index-th trial: goals in turn, the command drawn from the scene's seed."""
        goal = GOALS[index % len(GOALS)]
        return Trial("held_out", seed, goal, goal, self._command(goal, index // len(GOALS), seed))

    def setup(self, base: Setup) -> Setup:
        """Return how its robots observe and how long they act."""
        steps = base.steps if self.acts else STILL_STEPS
        return replace(base, disturb=self.disturb, steps=steps)

    def _command(self, goal: Goal, turn: int, seed: int) -> str:
        random = np.random.default_rng([seed, 1])
        if self.says == "seen":
            return phrase(goal, turn)
        if self.says == "held_out":
            return held_out(goal, turn)
        if self.says in KINDS:
            return command(random, goal, self.says, "test")
        return impossible(random, self.says, "test")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Outcome:
    """What came of a cell's episodes."""

    cell: str
    commands: tuple[str, ...] = ()
    # Success of each where there is something to do; else whether every answer was held, gripper and all.
    good: tuple[bool, ...] = ()
    # Whether every answer was held, and whether any was.
    all_held: tuple[bool, ...] = ()
    any_held: tuple[bool, ...] = ()
    # How far the hand went [m], and how much further open or closed the gripper was [share of its opening].
    drift: tuple[float, ...] = field(default=())
    gripped: tuple[float, ...] = ()
    # Whether the policy called the task done: soon after a success; before a success or without one. Empty
    # where it says nothing of it.
    done_in_time: tuple[bool, ...] = ()
    done_early: tuple[bool, ...] = ()
    # Of each: whether what was done stayed done, and whether a block moved that the goal was not about.
    stayed: tuple[bool, ...] = ()
    disturbed: tuple[bool, ...] = ()

    @property
    def rate(self) -> float:
        """Share of the episodes that went as they should."""
        return sum(self.good) / len(self.good)


class Run(msgspec.Struct):
    """The cells that one run has done, as its JSON has them."""

    # What the policy is called, and the SHA-256 of its archive.
    name: str
    archive: str
    episodes: int
    first_seed: int
    # By the cell's name.
    outcomes: dict[str, Outcome] = msgspec.field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a run.

        Raises:
            ValueError: the file is none.
        """
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path} is no run of vla.evaluation.language: {error}") from error

    def save(self, path: Path) -> None:
        """Write the run, whole or not at all."""
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        partial.replace(path)

    def resumed(self, path: Path) -> Self:
        """Return the run that the file has, where it is of the same policy and scenes, else this one."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = type(self).load(path)
            same = (found.archive, found.episodes, found.first_seed)
            if same == (self.archive, self.episodes, self.first_seed):
                return found
        return self


def cells() -> list[Cell]:
    """Return every row of the table, in its order."""
    return [*_commands(), *_pictures(), *_nothing()]


def _commands() -> Iterator[Cell]:
    yield Cell("seen phrasings", "seen", acts=True, target=0.98)
    yield Cell("held-out phrasings", "held_out", acts=True, target=0.95)
    names = {"plain": "paraphrases", "synonym": "synonyms of colours", "typo": "typing errors in the colour"}
    targets = {"plain": 0.9, "synonym": 0.9, "typo": 0.85, "negation": 0.9, "landmark": 0.9}
    for kind in KINDS:
        yield Cell(names.get(kind, kind), kind, acts=True, target=targets[kind])


def _pictures() -> Iterator[Cell]:
    looks: dict[str, MakeLook] = {
        "light at half": lambda _r, _b: Look(light=0.5),
        "light at 1.3": lambda _r, _b: Look(light=1.3),
        "warm light": lambda _r, _b: Look(tint=(1.15, 1.0, 0.85)),
        "cold light": lambda _r, _b: Look(tint=(0.85, 1.0, 1.15)),
        "camera moved 3 cm": lambda random, _b: Look(shift=_direction(random, 0.03)),
        "camera turned 3 degrees": lambda random, _b: Look(turn=_direction(random, 3.0)),
        "other table colours": lambda random, blocks: Look(table=draw_look(random, blocks).table),
        "other shades of the blocks": lambda random, blocks: Look(blocks=draw_look(random, blocks).blocks),
        "three distractors": _three_distractors,
        "all of these at random": draw_look,
    }
    for name, look in looks.items():
        yield Cell(name, "held_out", acts=True, target=0.8, look=look)
    disturbances: dict[str, Disturbance] = {
        "blur of radius 2": lambda picture: np.asarray(
            Image.fromarray(picture).filter(ImageFilter.GaussianBlur(2))
        ),
        "noise of deviation 15": _noise,
        "a fifth of the edge covered": _cover,
    }
    for name, disturb in disturbances.items():
        yield Cell(name, "held_out", acts=True, target=0.8, disturb=disturb)


def _nothing() -> Iterator[Cell]:
    names = {
        "forbidden": "forbidden: don't ...",
        "vague": "no colour, or two",
        "no_verb": "an object alone",
        "absent": "absent colour",
        "unknown": "unknown word",
        "other_verb": "impossible verb",
        "other_noun": "absent thing",
    }
    for kind in IMPOSSIBLE:
        yield Cell(names.get(kind, kind), kind, acts=False, target=0.95)
    yield Cell("colour name never trained", "never", acts=False, target=0.95)
    blanks: dict[str, Disturbance] = {
        "grey picture": lambda picture: np.full_like(picture, GREY),
        "black picture": np.zeros_like,
        "white picture": lambda picture: np.full_like(picture, 255),
    }
    for name, disturb in blanks.items():
        yield Cell(name, "held_out", acts=False, target=0.95, disturb=disturb)
    yield Cell("photograph of something else", "held_out", acts=False, target=0.95, disturb=_photograph)


def _three_distractors(random: np.random.Generator, blocks: NDArray[np.float32]) -> Look:
    while len((look := draw_look(random, blocks)).distractors) < 3:
        pass
    return Look(distractors=look.distractors)


def _direction(random: np.random.Generator, length: float) -> tuple[float, float, float]:
    """Draw a direction, of this length."""
    x, y, z = random.normal(size=3)
    scale = length / float(np.linalg.norm((x, y, z)))
    return x * scale, y * scale, z * scale


def _of(picture: Picture) -> np.random.Generator:
    """Return a generator that depends on the picture alone."""
    return np.random.default_rng(int(picture.astype(np.int64).sum()))


def _noise(picture: Picture) -> Picture:
    return (picture + _of(picture).normal(0, 15, picture.shape)).clip(0, 255).astype(np.uint8)


def _cover(picture: Picture) -> Picture:
    """Cover a square with grey, somewhere."""
    size = picture.shape[0]
    top, left = _of(picture).integers(0, size - size // 5, 2)
    covered = picture.copy()
    covered[top : top + size // 5, left : left + size // 5] = GREY
    return covered


def _photograph(picture: Picture) -> Picture:
    """Return a part of one of scikit-image's photographs in the picture's place."""
    from skimage import data  # noqa: PLC0415  in the extras bench and dev alone

    folder, random = Path(data.__file__).parent, _of(picture)
    name = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "retina.jpg", "motorcycle_left.png")
    image = Image.open(folder / name[random.integers(len(name))]).convert("RGB")
    edge = int(min(image.size) * random.uniform(0.5, 1))
    left, top = (int(random.integers(0, side - edge + 1)) for side in image.size)
    return np.asarray(image.crop((left, top, left + edge, top + edge)).resize(picture.shape[:2]))
