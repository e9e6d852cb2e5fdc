"""What a picture of the tabletop shows, in one sentence: what is learned before any action is.

Blocks are told in their order across the picture and towards the camera, undecided neighbours too, and then
which of them the hand holds or is nearest to.
"""

import numpy as np

from vla.tabletop.commands import COLOURS
from vla.tabletop.texts import Scene, held

# What descriptions are made of: the end, then words.
WORDS = ("", *COLOURS, "from", "left", "to", "right", "front", "back", "the", "hand", "is", "holding", "near")
# Words of every description, and its end.
LENGTH = 22


def describe(scene: Scene) -> str:
    """Describe a scene, in `LENGTH` - 1 words without the commas."""
    across, away = scene.blocks[:, 1], -scene.blocks[:, 0]
    holding = held(scene)
    nearest = COLOURS[int(np.linalg.norm(scene.blocks - scene.state[:3], axis=1).argmin())]
    hand = f"holding {holding}" if holding else f"near {nearest}"
    return f"from left to right {_order(across)}, from front to back {_order(away)}, the hand is {hand}"


def spell(description: str) -> list[int]:
    """Return a description's words: `LENGTH` indices into `WORDS`, the last one the end."""
    words = description.replace(",", "").split()
    return [WORDS.index(word) for word in words] + [0]


def _order(along: np.ndarray) -> str:
    return " ".join(COLOURS[index] for index in np.argsort(along))
