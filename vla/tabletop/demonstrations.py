"""Demonstrations on disk: memory-mapped arrays beside a readable ``dataset.json``.

``N`` frames, ``G`` goals in the order of ``vla.tabletop.commands.GOALS``, ``T`` future control steps:

============  =========================  ===============================================================
file          array                      meaning
============  =========================  ===============================================================
images.npy    uint8 [N, size, size, 3]   what the camera saw, RGB
state.npy     float32 [N, 4]             the robot's state, in physical units
actions.npy   float32 [N, G, T, 4]       what the expert would really do from here for *every* goal,
                                         in physical units
blocks.npy    float32 [N, 4, 3]          the blocks' centres in the table frame [m]
boxes.npy     float32 [N, 4, 4]          the blocks in the picture: left, top, right and bottom, in [0, 1]
hand.npy      float32 [N, 2]             the point between the fingertips in the picture: x and y, in [0, 1]
                                         where the picture shows it
episode.npy   int32 [N]                  index of the episode; its frames are contiguous
goal.npy      int32 [N]                  index of the goal that the episode pursued
============  =========================  ===============================================================
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from vla_runtime.spec import Dimension

FORMAT_VERSION = 3
DESCRIPTION = "dataset.json"
D = TypeVar("D")


class DatasetError(ValueError):
    """A data set on disk is missing something, or is not what its ``dataset.json`` says."""


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``dataset.json`` holds: everything needed to interpret the arrays."""

    format_version: int
    camera: str
    # Width and height of the images [pixels].
    image_size: int
    # Rate of the actions and of the frames [Hz].
    control_hz: float
    # Future actions in each label [control steps].
    horizon: int
    state: tuple[Dimension, ...]
    action: tuple[Dimension, ...]
    # Each goal as (task, colour).
    goals: tuple[tuple[str, str], ...]
    # The blocks, in the order of blocks.npy.
    blocks: tuple[str, ...]
    episodes: int
    frames: int
    seed: int
    # Noise on the executed actions, as a share of the action bound; one level an episode.
    noise_levels: tuple[float, ...]
    # Share of the frames that are drawn in a random look.
    varied: float
    # Chance that a step above a block closed open fingers too early.
    early: float
    # Share of the episodes in which the noisy expert reached its goal.
    success_rate: float

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of every array, by its file's stem."""
        n, size, width = self.frames, self.image_size, len(self.action)
        return {
            "images": ("uint8", (n, size, size, 3)),
            "state": ("float32", (n, len(self.state))),
            "actions": ("float32", (n, len(self.goals), self.horizon, width)),
            "blocks": ("float32", (n, len(self.blocks), 3)),
            "boxes": ("float32", (n, len(self.blocks), 4)),
            "hand": ("float32", (n, 2)),
            "episode": ("int32", (n,)),
            "goal": ("int32", (n,)),
        }


@dataclass(frozen=True)
class Demonstrations:
    """A data set, memory-mapped and read-only; shapes and dtypes as in the module's table."""

    description: Description
    images: NDArray[np.uint8]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    blocks: NDArray[np.float32]
    boxes: NDArray[np.float32]
    hand: NDArray[np.float32]
    episode: NDArray[np.int32]
    goal: NDArray[np.int32]

    def __len__(self) -> int:
        """Count the frames."""
        return self.description.frames

    @classmethod
    def load(cls, folder: Path | str) -> "Demonstrations":
        """Map the data set in ``folder``.

        Raises ``DatasetError`` if a file is missing or unreadable, or does not match ``dataset.json``.
        """
        folder = Path(folder)
        description = read_description(folder)
        return cls(description, **map_arrays(folder, description.arrays()))


def read_description(folder: Path) -> Description:
    """Parse ``dataset.json``; raises ``DatasetError`` if it is missing, malformed or of another version."""
    path = folder / DESCRIPTION
    description = decode(path, Description, "python -m vla.tabletop")
    if description.format_version != FORMAT_VERSION:
        raise DatasetError(
            f"{path}: format_version is {description.format_version}, expected {FORMAT_VERSION}"
        )
    return description


def decode(path: Path, kind: type[D], maker: str) -> D:
    """Read a description; raises ``DatasetError``, which names the maker, if it is missing or malformed."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing: not a data set; make one with {maker}") from None
    except msgspec.DecodeError as error:
        raise DatasetError(f"{path}: {error}") from error


def map_arrays(
    folder: Path, arrays: dict[str, tuple[str, tuple[int, ...]]], says: str = DESCRIPTION
) -> dict[str, NDArray]:
    """Memory-map a data set's arrays, given by their files' stems as dtype and shape; see `map_array`."""
    return {
        name: map_array(folder / f"{name}.npy", dtype, shape, says) for name, (dtype, shape) in arrays.items()
    }


def map_array(path: Path, dtype: str, shape: tuple[int, ...], says: str = DESCRIPTION) -> NDArray:
    """Memory-map one array and check it against what the description, the file `says`, promises."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing") from None
    except (ValueError, EOFError, OSError) as error:
        raise DatasetError(f"{path} is not a readable array: {error}") from error
    if (str(array.dtype), array.shape) != (dtype, shape):
        raise DatasetError(
            f"{path}: found {array.dtype} {list(array.shape)}, {says} says {dtype} {list(shape)}"
        )
    return array
