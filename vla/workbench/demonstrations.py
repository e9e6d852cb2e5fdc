"""Demonstrations at the workbench, on disk: memory-mapped arrays beside a readable ``workbench.json``.

``N`` frames, ``M`` tasks of each, ``T`` future control steps, ``k`` the longest plan:

============  =========================  ===============================================================
file          array                      meaning
============  =========================  ===============================================================
images.npy    uint8 [N, size, size, 3]   what the camera saw, RGB
state.npy     float32 [N, 4]             the robot's state, in physical units
task.npy      int32 [N, M]               indices in ``commands.TASKS``; the first is the one pursued
plan.npy      int64 [N, M, k]            the steps that each task still needs, indices in ``commands.STEPS``,
                                         the last of which fills what is left
actions.npy   float32 [N, M, T, 4]       what the expert would really do from here for each task's next step
things.npy    float32 [N, 8, 3]          where ``simulator.THINGS`` are in the table frame [m]
episode.npy   int32 [N]                  index of the episode; its frames are contiguous
============  =========================  ===============================================================
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from vla.tabletop.demonstrations import DatasetError, decode, map_arrays
from vla.workbench.commands import STEPS, TASKS
from vla_runtime.spec import Dimension

DESCRIPTION = "workbench.json"


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``workbench.json`` holds: everything needed to interpret the arrays."""

    camera: str
    # Width and height of the images [pixels].
    image_size: int
    # Rate of the actions and of the frames [Hz].
    control_hz: float
    # Future actions in each label [control steps].
    horizon: int
    state: tuple[Dimension, ...]
    action: tuple[Dimension, ...]
    # Labels of the steps, and the most of them in a plan.
    steps: tuple[str, ...]
    longest: int
    # The tasks there are, and how many each frame is labelled with.
    tasks: int
    labelled: int
    things: tuple[str, ...]
    episodes: int
    frames: int
    seed: int
    noise_levels: tuple[float, ...]
    # Tasks that the noisy expert pursued to the end.
    finished: int

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of every array, by its file's stem."""
        n, size, width = self.frames, self.image_size, len(self.action)
        return {
            "images": ("uint8", (n, size, size, 3)),
            "state": ("float32", (n, len(self.state))),
            "task": ("int32", (n, self.labelled)),
            "plan": ("int64", (n, self.labelled, self.longest)),
            "actions": ("float32", (n, self.labelled, self.horizon, width)),
            "things": ("float32", (n, len(self.things), 3)),
            "episode": ("int32", (n,)),
        }


@dataclass(frozen=True)
class Demonstrations:
    """A data set, memory-mapped and read-only; shapes and dtypes as in the module's table."""

    description: Description
    images: NDArray[np.uint8]
    state: NDArray[np.float32]
    task: NDArray[np.int32]
    plan: NDArray[np.int64]
    actions: NDArray[np.float32]
    things: NDArray[np.float32]
    episode: NDArray[np.int32]

    @classmethod
    def load(cls, folder: Path) -> "Demonstrations":
        """Map the data set in ``folder``.

        Raises ``DatasetError`` if a file is missing or unreadable, or does not match ``workbench.json``.
        """
        about = decode(folder / DESCRIPTION, Description, "python -m vla.workbench")
        if (about.steps, about.tasks) != (tuple(map(str, STEPS)), len(TASKS)):
            raise DatasetError(
                f"{folder}: its steps and tasks are not those of vla.workbench: collect it again"
            )
        return cls(about, **map_arrays(folder, about.arrays(), DESCRIPTION))
