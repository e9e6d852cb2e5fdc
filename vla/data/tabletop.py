"""Demonstrations of the tabletop as a robot records them: one command an episode, one action a frame."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from vla.data.episodes import About, Episode
from vla.data.mirror import Mirror
from vla.tabletop.collection import EPISODE_FRAMES
from vla.tabletop.commands import GOALS, PHRASES, phrase
from vla.tabletop.demonstrations import Demonstrations

ROBOT = "vla_tabletop"
# The plane of symmetry is y = 0.
MIRROR = Mirror(state=("hand_y",), action=("delta_y",))


class Tabletop:
    """What `python -m vla.tabletop` wrote, as a `Source`.

    A demonstration pursues one goal after the other; each of them is an episode here, in a phrasing of
    training's. Its action is the expert's answer for that goal, not the noisy one that was executed. It
    succeeded where another goal followed, or where it was a push that ended the demonstration, as pushes once
    did; the last one of a demonstration was cut short by its length and counts as failed.
    """

    def __init__(self, demonstrations: Demonstrations) -> None:
        self._data = demonstrations
        description = demonstrations.description
        size = description.image_size
        self.about = About(
            robot=ROBOT,
            control_hz=description.control_hz,
            cameras={description.camera: (size, size)},
            state=tuple(dimension.name for dimension in description.state),
            action=tuple(dimension.name for dimension in description.action),
        )
        key = np.stack([demonstrations.episode, demonstrations.goal], axis=1)
        changes = np.flatnonzero((np.diff(key, axis=0) != 0).any(1)) + 1
        # Where each episode begins, and where the last one ends.
        self._borders = np.array([0, *changes, len(demonstrations)])

    def __len__(self) -> int:
        """Count the episodes."""
        return len(self._borders) - 1

    def __iter__(self) -> Iterator[Episode]:
        """Read the episodes in order, one at a time."""
        return (self.episode(index) for index in range(len(self)))

    def episode(self, index: int) -> Episode:
        """Read one episode."""
        data, (first, last) = self._data, self._borders[index : index + 2]
        rows, goal = slice(first, last), int(data.goal[first])
        command = phrase(GOALS[goal], index % len(PHRASES[GOALS[goal].task]))
        return Episode(
            images={data.description.camera: [Image.fromarray(pixels) for pixels in data.images[rows]]},
            state=np.array(data.state[rows]),
            actions=np.array(data.actions[rows, goal, 0]),
            commands=(command,) * int(last - first),
            success=self._succeeded(int(last)),
        )

    def _succeeded(self, last: int) -> bool:
        """Whether the goal that ends before frame `last` was reached."""
        episode = self._data.episode
        if last < len(episode) and episode[last] == episode[last - 1]:
            return True
        return int((episode == episode[last - 1]).sum()) < EPISODE_FRAMES
