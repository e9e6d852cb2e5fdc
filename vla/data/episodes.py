"""What every data set is, whatever its format: robots' episodes, frame by frame."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class DataError(ValueError):
    """A data set is missing something, is damaged, or is not what it says it is."""


@dataclass(frozen=True)
class About:
    """What a data set's episodes have in common."""

    # Name of the robot, as the data set gives it.
    robot: str
    # Rate of the frames and of the actions [Hz].
    control_hz: float
    # Camera -> height and width of its pictures [pixels].
    cameras: Mapping[str, tuple[int, int]]
    # Names of the state's dimensions; empty where no state is recorded.
    state: tuple[str, ...]
    # Names of an action's dimensions.
    action: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.control_hz > 0:
            raise DataError(f"the rate must be positive, got {self.control_hz} Hz")
        for what in ("state", "action"):
            names = getattr(self, what)
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise DataError(
                    f"{what}: the dimensions need distinct names, repeated: {', '.join(repeated)}"
                )


@dataclass(frozen=True)
class Episode:
    """One episode of n frames; pictures are decoded when they are used."""

    # Camera -> n pictures, RGB.
    images: Mapping[str, Sequence[Image.Image]]
    # float32 [n, S], physical units
    state: NDArray[np.float32]
    # float32 [n, A], what was commanded at each frame, physical units
    actions: NDArray[np.float32]
    # What the robot was told, for each frame.
    commands: tuple[str, ...]
    # Whether the task was done in the end; None where nobody says.
    success: bool | None = None

    def __post_init__(self) -> None:
        counts = {f"camera {name}": len(pictures) for name, pictures in self.images.items()}
        counts |= {"state": len(self.state), "actions": len(self.actions), "commands": len(self.commands)}
        if len(set(counts.values())) != 1 or not len(self.commands):
            raise DataError(f"an episode needs as many frames of each, at least one, got {counts}")

    def __len__(self) -> int:
        """Count the frames."""
        return len(self.commands)

    def check(self, about: About) -> None:
        """Compare with what the data set says of all its episodes.

        Raises:
            DataError: cameras, sizes or widths differ, or a number is not finite.
        """
        sizes = {name: (each[0].height, each[0].width) for name, each in self.images.items()}
        if sizes != dict(about.cameras):
            raise DataError(f"the episode's cameras are {sizes}, the data set's {dict(about.cameras)}")
        for what, values, names in (
            ("state", self.state, about.state),
            ("actions", self.actions, about.action),
        ):
            if values.shape[1:] != (len(names),):
                raise DataError(f"{what}: {values.shape[1:]} numbers a frame for the dimensions {names}")
            if not np.isfinite(values).all():
                raise DataError(f"{what} has a number that is not finite")


class Source(Protocol):
    """A data set of any format."""

    @property
    def about(self) -> About:
        """What its episodes have in common."""
        ...

    def __len__(self) -> int:
        """Count the episodes."""
        ...

    def __iter__(self) -> Iterator[Episode]:
        """Read the episodes in order, one at a time."""
        ...
