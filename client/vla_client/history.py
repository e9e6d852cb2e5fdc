"""The last n observations of one robot as one, for a policy that takes a history.

seen      o0  o1  o2  o3         n = 2
asked     00  01  12  23         the oldest first; the first is doubled until there are n
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from vla_client.observation import Image, Observation, Pictures


class History:
    """Keeps the last `steps` observations. One history, one robot."""

    def __init__(self, steps: int = 1) -> None:
        """Keep `steps`, `history` of the policy's description.

        Raises:
            ValueError: `steps` is less than 1.
        """
        if steps < 1:
            raise ValueError(f"history must be at least 1 step, got {steps}")
        self._seen: deque[Observation] = deque(maxlen=steps)
        self._steps = steps

    def add(self, observation: Observation) -> Observation:
        """Return what to ask with: command, seed and deadline of the newest, pictures and states of all.

        Raises:
            ValueError: the cameras differ from those of the observations before.
        """
        self._seen.append(observation)
        if self._steps == 1:
            return observation
        missing = self._steps - len(self._seen)
        steps = [self._seen[0]] * missing + list(self._seen)
        state = None if observation.state is None else np.asarray([each.state for each in steps], np.float64)
        return replace(observation, image=_joined([each.image for each in steps]), state=state)

    def watch(self, observe: Callable[[], Observation]) -> Callable[[], Observation]:
        """Return `observe` as a player may call it; with a history it is called at once, every step."""
        if self._steps == 1:
            return observe
        whole = self.add(observe())
        return lambda: whole

    def reset(self) -> None:
        """Forget all: a new episode begins."""
        self._seen.clear()


def _joined(given: Sequence[Pictures | Mapping[str, Pictures]]) -> Pictures | Mapping[str, Pictures]:
    """Return each camera's pictures as a list, oldest first."""
    newest = given[-1]
    if not isinstance(newest, Mapping):
        return [_single(image, "image") for image in given]
    for image in given:
        if not isinstance(image, Mapping) or image.keys() != newest.keys():
            raise ValueError(f"an observation without the cameras of the newest: {', '.join(newest)}")
    cameras = [image for image in given if isinstance(image, Mapping)]
    return {name: [_single(camera[name], f"image.{name}") for camera in cameras] for name in newest}


def _single(image: Pictures | Mapping[str, Pictures], field: str) -> Image:
    if isinstance(image, (bytes, np.ndarray)):
        return image
    raise ValueError(f"{field} must be one picture a step, got {type(image).__name__}")
