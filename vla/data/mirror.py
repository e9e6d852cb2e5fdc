"""Mirroring a sample in the robot's plane of symmetry: picture, state, action and words together.

Twice mirrored it is the sample again, bit for bit. A command with a word that means a side at one time and
none at another ("right now") is not mirrored, nor is its sample.
"""

import re
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from vla.data.episodes import About, DataError, Episode

Numbers = NDArray[np.float32]

# Words that change places.
PAIRS = (
    ("left", "right"),
    ("leftmost", "rightmost"),
    ("leftward", "rightward"),
    ("leftwards", "rightwards"),
    ("lefthand", "righthand"),
    ("clockwise", "counterclockwise"),
)
# Where these words mean no side, or would not once they are swapped: then nothing is mirrored.
NO_SIDE = re.compile(
    r"\b(left|right)\s+(away|now|here|there|after|before|over)\b"
    r"|\b(all|is|are|was|were|has|have|what's|that's)\s+(left|right)\b(?!\s+of\b)"
    r"|^\s*(left|right)\s*,|\b(left|right)\s*:|\bgo\s+(left|right)\s+to\b|\bleftovers?\b",
    re.IGNORECASE,
)


class Mirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What mirroring does to a robot, by the data set's own names."""

    # Dimensions whose sign changes: across the plane, and rotations about axes in it.
    state: tuple[str, ...] = ()
    action: tuple[str, ...] = ()
    # Pairs that change places: cameras, dimensions of the state, dimensions of the action.
    swap: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Reflection:
    """A `Mirror` for a data set: what each place takes, and with which sign."""

    cameras: NDArray[np.int64]  # int64 [C]
    state: NDArray[np.int64]  # int64 [S]
    state_sign: Numbers  # float32 [S], 1 or -1
    action: NDArray[np.int64]  # int64 [A]
    action_sign: Numbers  # float32 [A], 1 or -1

    @classmethod
    def of(cls, mirror: Mirror, about: About) -> "Reflection":
        """Place the names.

        Raises:
            DataError: a name is nowhere in the data set, or one of a pair is.
        """
        cameras = tuple(about.cameras)
        known = {*cameras, *about.state, *about.action}
        for name in (*mirror.state, *mirror.action, *(name for pair in mirror.swap for name in pair)):
            if name not in known:
                raise DataError(f"the mirror names {name!r}; there are {', '.join(sorted(known))}")
        return cls(
            _order(cameras, mirror.swap),
            _order(about.state, mirror.swap),
            _signs(about.state, mirror.state),
            _order(about.action, mirror.swap),
            _signs(about.action, mirror.action),
        )

    def images(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Mirror pictures, uint8 [..., C, 3, H, W]."""
        return images[..., self.cameras, :, :, :][..., ::-1]

    def states(self, state: Numbers) -> Numbers:
        """Mirror states, float32 [..., S]."""
        return state[..., self.state] * self.state_sign

    def actions(self, actions: Numbers) -> Numbers:
        """Mirror actions, float32 [..., A]."""
        return actions[..., self.action] * self.action_sign

    def episode(self, episode: Episode) -> Episode:
        """Mirror an episode.

        Raises:
            DataError: a command can't be mirrored, see `can_be_mirrored`.
        """
        names = list(episode.images)
        for command in set(episode.commands):
            if not can_be_mirrored(command):
                raise DataError(f"the command {command!r} can't be mirrored")
        pictures = {
            name: [ImageOps.mirror(picture) for picture in episode.images[names[place]]]
            for name, place in zip(names, self.cameras, strict=True)
        }
        return Episode(
            pictures,
            self.states(episode.state),
            self.actions(episode.actions),
            tuple(words(command) for command in episode.commands),
            episode.success,
        )


def words(command: str) -> str:
    """Swap left and right, in whatever case each is written."""
    return WORD.sub(lambda found: _cased(SWAPPED[found[0].lower()], found[0]), command)


def can_be_mirrored(command: str) -> bool:
    """Whether every word of a side means one, and mirroring twice gives the command back."""
    other = words(command)
    return not (NO_SIDE.search(command) or NO_SIDE.search(other)) and words(other) == command


def _order(names: tuple[str, ...], swap: tuple[tuple[str, str], ...]) -> NDArray[np.int64]:
    other = {one: two for pair in swap for one, two in (pair, pair[::-1])}
    for name in names:
        if other.get(name, name) not in names:
            raise DataError(
                f"the mirror swaps {name!r} with {other[name]!r}, which is not of {', '.join(names)}"
            )
    return np.array([names.index(other.get(name, name)) for name in names], np.int64)


def _signs(names: tuple[str, ...], negated: tuple[str, ...]) -> Numbers:
    return np.where(np.isin(names, negated), -1, 1).astype(np.float32)


def _cased(word: str, like: str) -> str:
    """Write a word as another is written; of mixed case it stays lower."""
    if like.isupper():
        return word.upper()
    return word.capitalize() if like[0].isupper() and like[1:].islower() else word


SWAPPED = {one: two for pair in PAIRS for one, two in (pair, pair[::-1])}
WORD = re.compile(rf"\b({'|'.join(sorted(SWAPPED, key=len, reverse=True))})\b", re.IGNORECASE)
