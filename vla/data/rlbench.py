"""RLBench's stored demonstrations (James et al. 2020): folders of PNG pictures and pickled observations.

Somewhere below the folder lie `episodes/episode*`, each with `low_dim_obs.pkl` and a folder for each camera
(`front_rgb/0.png`, ...). `variation_descriptions.pkl` lies beside `episodes`, or in the episode. RLBench
stores no action: here it is the gripper's next pose and whether it is open then, the last one stays.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla.data.episodes import About, DataError, Episode
from vla.data.pictures import listed, natural, read
from vla.data.unpickle import Record, load

CONTROL_HZ = 20.0
LOW_DIM, DESCRIPTIONS = "low_dim_obs.pkl", "variation_descriptions.pkl"
PICTURES = "*.png"
CLASSES = (("rlbench.demo", "Demo"), ("rlbench.backend.observation", "Observation"))
POSE = ("x", "y", "z", "qx", "qy", "qz", "qw", "open")
JOINTS = tuple(f"joint_{index}" for index in range(7))


class RlBench:
    """A folder of stored demonstrations, of one task or of several; a `Source`.

    Raises:
        DataError: there is no episode, or a file is missing, damaged or names an unknown class.
    """

    def __init__(self, folder: Path) -> None:
        self._episodes = sorted((path.parent for path in folder.rglob(LOW_DIM)), key=natural)
        if not self._episodes:
            raise DataError(f"{folder}: no episode, there is no {LOW_DIM} below it")
        self.about = self._about()

    def _about(self) -> About:
        """Return what the episodes have in common."""
        first = self._episodes[0]
        cameras = {}
        for folder in sorted(first.glob("*_rgb")):
            picture = read(listed(folder, PICTURES)[0])
            cameras[folder.name.removesuffix("_rgb")] = (picture.height, picture.width)
        return About("panda", CONTROL_HZ, cameras, (*JOINTS, *POSE), POSE)

    def __len__(self) -> int:
        """Count the episodes."""
        return len(self._episodes)

    def __iter__(self) -> Iterator[Episode]:
        """Read the episodes in order, one at a time."""
        return (self._episode(index, folder) for index, folder in enumerate(self._episodes))

    def _episode(self, index: int, folder: Path) -> Episode:
        demo = load(folder / LOW_DIM, CLASSES)
        observations = getattr(demo, "_observations", demo)
        if not isinstance(observations, list) or not all(type(each) is Record for each in observations):
            raise DataError(f"{folder / LOW_DIM} holds no observations")
        joints = np.stack([_vector(each, "joint_positions", 7, folder) for each in observations])
        pose = np.stack([_pose(each, folder) for each in observations])
        said = _descriptions(folder)
        return Episode(
            images={
                name: [read(path) for path in listed(folder / f"{name}_rgb", PICTURES)]
                for name in self.about.cameras
            },
            state=np.concatenate([joints, pose], axis=1),
            actions=np.concatenate([pose[1:], pose[-1:]]),
            commands=(said[index % len(said)],) * len(observations),
        )


def _pose(observation: Record, folder: Path) -> NDArray[np.float32]:
    """Return the gripper's pose and whether it is open: float32 [8]."""
    pose = _vector(observation, "gripper_pose", 7, folder)
    return np.append(pose, _vector(observation, "gripper_open", 1, folder))


def _vector(observation: Record, name: str, width: int, folder: Path) -> NDArray[np.float32]:
    try:
        return np.asarray(getattr(observation, name, None), np.float32).reshape(width)
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / LOW_DIM}: {name} is not {width} numbers") from error


def _descriptions(folder: Path) -> list[str]:
    """Return the sentences for an episode's variation."""
    for place in (folder, folder.parent.parent):
        if (place / DESCRIPTIONS).is_file():
            said: Any = load(place / DESCRIPTIONS)
            if isinstance(said, list) and said and all(isinstance(each, str) for each in said):
                return said
            raise DataError(f"{place / DESCRIPTIONS} is no list of sentences")
    raise DataError(f"{folder}: no {DESCRIPTIONS} there or beside its episodes")
