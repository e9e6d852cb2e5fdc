"""BridgeData V2's raw trajectories (Walke et al. 2023): folders of JPEG pictures and pickled numbers.

Somewhere below the folder lie `raw/traj_group*/traj*`, each with `images0` and more cameras, `obs_dict.pkl`
(states), `policy_out.pkl` (actions) and mostly `lang.txt`. As in the authors' own conversion the last picture
and state, which no action follows, are left out, and of trajectories collected before 23 July 2021, whose
pictures came a step late, so are the first picture and the last action.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla.data.episodes import About, DataError, Episode
from vla.data.pictures import listed, natural, read
from vla.data.unpickle import load

CONTROL_HZ = 5.0
DIMENSIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
STATES, ACTIONS, WORDS = "obs_dict.pkl", "policy_out.pkl", "lang.txt"
PICTURES = "im_*.jpg"
DATE = re.compile(r"\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}")
ON_TIME = datetime(2021, 7, 23, tzinfo=UTC)


class Bridge:
    """A folder of raw trajectories; a `Source`. Cameras are those that all trajectories have.

    Raises:
        DataError: there is no trajectory, or a file is missing, damaged or names anything but arrays.
    """

    def __init__(self, folder: Path) -> None:
        self._trajectories = sorted((path.parent for path in folder.rglob(STATES)), key=natural)
        if not self._trajectories:
            raise DataError(f"{folder}: no trajectory, there is no {STATES} below it")
        self.about = self._about()

    def _about(self) -> About:
        """Return what the trajectories have in common."""
        found = [{path.name for path in each.glob("images*")} for each in self._trajectories]
        common = sorted(set.intersection(*found), key=natural)
        if not common:
            raise DataError(f"{self._trajectories[0].parent}: the trajectories have no camera in common")
        sizes = {name: read(listed(self._trajectories[0] / name, PICTURES)[0]) for name in common}
        return About(
            robot="widowx",
            control_hz=CONTROL_HZ,
            cameras={name: (picture.height, picture.width) for name, picture in sizes.items()},
            state=DIMENSIONS,
            action=DIMENSIONS,
        )

    def __len__(self) -> int:
        """Count the trajectories."""
        return len(self._trajectories)

    def __iter__(self) -> Iterator[Episode]:
        """Read the trajectories in order, one at a time."""
        return (self._episode(folder) for folder in self._trajectories)

    def _episode(self, folder: Path) -> Episode:
        states = load(folder / STATES)
        if not isinstance(states, dict) or "full_state" not in states:
            raise DataError(f"{folder / STATES} has no full_state")
        full = np.asarray(states["full_state"], np.float32)
        actions = _actions(load(folder / ACTIONS), folder / ACTIONS)
        pictures = {name: listed(folder / name, PICTURES)[:-1] for name in self.about.cameras}
        late = int(_late(folder))
        steps = slice(0, len(actions) - late)
        return Episode(
            images={name: [read(path) for path in paths[late:]] for name, paths in pictures.items()},
            state=full[:-1][late:],
            actions=actions[steps],
            commands=(_command(folder / WORDS),) * (len(actions) - late),
        )


def _actions(values: Any, path: Path) -> NDArray[np.float32]:
    """Return the actions, float32 [n, 7], of a list of arrays or of dictionaries with one."""
    try:
        rows = [each["actions"] if isinstance(each, dict) else each for each in values]
        return np.stack([np.asarray(row, np.float32) for row in rows])
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no list of actions: {error}") from error


def _command(path: Path) -> str:
    """Return the first sentence; annotators' confidences are none. Empty where nobody wrote one."""
    lines = path.read_text().splitlines() if path.is_file() else []
    said = [line.strip() for line in lines if line.strip() and "confidence" not in line]
    return said[0] if said else ""


def _late(folder: Path) -> bool:
    """Whether a trajectory is of the time when pictures came a step late; its folder tells the date."""
    dates = [part for part in folder.parts if DATE.fullmatch(part)]
    return bool(dates) and datetime.strptime(dates[-1], "%Y-%m-%d_%H-%M-%S").replace(tzinfo=UTC) < ON_TIME
