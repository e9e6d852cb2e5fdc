"""How a scene looks: light, colours, camera, and things that no command names."""

import colorsys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]

# Hue of each block's colour and how far its shades go from it, both as shares of the colour circle.
BLOCK_HUES = {"red": (0.0, 0.02), "green": (0.36, 0.05), "blue": (0.632, 0.03), "yellow": (0.142, 0.018)}
# Hues of distractors: purple to pink, cyan, orange-brown; greys are drawn besides.
DISTRACTOR_HUES = ((0.75, 0.9), (0.48, 0.53), (0.06, 0.08))
# The scene has so many bodies for distractors.
DISTRACTORS = 3
# How far from a block's centre a distractor keeps [m].
CLEARANCE = 0.06


class Distractor(NamedTuple):
    """A thing that no command names: it lies on the table, and nothing touches it."""

    x: float  # [m]
    y: float  # [m]
    # Half its width and height [m].
    size: float
    colour: Colour


@dataclass(frozen=True)
class Look:
    """How the scene is drawn; the default is the plain scene of `tabletop.xml`."""

    # Factor on all light, and on its red, green and blue.
    light: float = 1.0
    tint: Colour = (1.0, 1.0, 1.0)
    # Added to the direction in which the lamp shines.
    lamp: tuple[float, float] = (0.0, 0.0)
    # How far the camera is moved in the table frame [m].
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    # How far it is turned about its own axes: tilted up, turned left, rolled [degrees].
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    # Factor on the size of what it sees.
    zoom: float = 1.0
    # Colours of the table, its mat and its edge; None: as they are.
    table: tuple[Colour, Colour, Colour] | None = None
    # Colours of the blocks, in the order of `COLOURS`; None: as they are.
    blocks: tuple[Colour, ...] | None = None
    distractors: tuple[Distractor, ...] = ()


PLAIN = Look()


def draw_look(random: np.random.Generator, blocks: NDArray[np.floating]) -> Look:
    """Draw a look; distractors keep clear of the blocks' centres, float [4, 3] [m]."""
    warm = random.uniform(-0.18, 0.18)
    return Look(
        light=float(np.exp(random.uniform(np.log(0.4), np.log(1.35)))),
        tint=(1 + warm, 1 + random.uniform(-0.05, 0.05), 1 - warm),
        lamp=_pair(random, 0.5),
        shift=_triple(random, 0.04),
        turn=_triple(random, 3.5),
        zoom=random.uniform(0.95, 1.06),
        table=(_any_colour(random), _any_colour(random), _any_colour(random)),
        blocks=tuple(_shade(random, *hue) for hue in BLOCK_HUES.values()),
        distractors=tuple(_distractor(random, blocks) for _ in range(random.integers(DISTRACTORS + 1))),
    )


def turned(axes: NDArray[np.float64], degrees: tuple[float, float, float]) -> NDArray[np.float64]:
    """Turn a camera's axes about themselves.

    Args:
        axes: float64 [3, 3], rows: right, up and backwards
        degrees: about each of them, one after the other
    """
    for axis, angle in enumerate(np.radians(degrees)):
        one, other = axes[(axis + 1) % 3], axes[(axis + 2) % 3]
        moved = axes.copy()
        moved[(axis + 1) % 3] = np.cos(angle) * one + np.sin(angle) * other
        moved[(axis + 2) % 3] = np.cos(angle) * other - np.sin(angle) * one
        axes = moved
    return axes


def _pair(random: np.random.Generator, bound: float) -> tuple[float, float]:
    return random.uniform(-bound, bound), random.uniform(-bound, bound)


def _triple(random: np.random.Generator, bound: float) -> tuple[float, float, float]:
    return (*_pair(random, bound), random.uniform(-bound, bound))


def _any_colour(random: np.random.Generator) -> Colour:
    return colorsys.hsv_to_rgb(random.random(), 0.6 * random.random() ** 1.5, random.uniform(0.15, 0.95))


def _shade(random: np.random.Generator, hue: float, spread: float) -> Colour:
    hue = (hue + random.uniform(-spread, spread)) % 1
    return colorsys.hsv_to_rgb(hue, random.uniform(0.72, 1.0), random.uniform(0.6, 1.0))


def _distractor(random: np.random.Generator, blocks: NDArray[np.floating]) -> Distractor:
    while True:
        x, y = random.uniform((-0.22, -0.28), (0.2, 0.28))
        if np.hypot(blocks[:, 0] - x, blocks[:, 1] - y).min() > CLEARANCE:
            break
    hue = random.uniform(*DISTRACTOR_HUES[random.integers(len(DISTRACTOR_HUES))])
    vivid = random.uniform(0.4, 0.9) if random.random() < 0.6 else 0.0
    colour = colorsys.hsv_to_rgb(hue, vivid, random.uniform(0.1, 0.95))
    return Distractor(float(x), float(y), random.uniform(0.012, 0.026), colour)
