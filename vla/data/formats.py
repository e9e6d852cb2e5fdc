"""Which format a folder has."""

from pathlib import Path

from vla.data.episodes import DataError, Source
from vla.data.lerobot.layout import INFO, is_lerobot
from vla.tabletop.demonstrations import DESCRIPTION, Demonstrations

# What tells the other formats, in the folder or below it.
RLDS, BRIDGE, RLBENCH = "features.json", "obs_dict.pkl", "low_dim_obs.pkl"


def is_recorded(data: Path) -> bool:
    """Whether training takes this for recorded data: a mixture's file, or a folder of LeRobot's."""
    return data.suffix == ".json" or is_lerobot(data)


def open_source(folder: Path, control_hz: float | None = None, split: str = "train") -> Source:
    """Open a data set of any format that is read here.

    Args:
        folder: where it lies
        control_hz: the rate of RLDS, which does not say it [Hz]; other formats have theirs
        split: the part of RLDS

    Raises:
        DataError: the folder is missing, of no known format, or damaged; or RLDS has no rate.
        DatasetError: demonstrations of the tabletop are damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    # What each format needs takes a while to import.
    if is_lerobot(folder):
        from vla.data.lerobot.reader import Dataset  # noqa: PLC0415

        return Dataset(folder)
    if (folder / DESCRIPTION).is_file():
        from vla.data.tabletop import Tabletop  # noqa: PLC0415

        return Tabletop(Demonstrations.load(folder))
    if (folder / RLDS).is_file():
        from vla.data.rlds import Rlds  # noqa: PLC0415

        if control_hz is None:
            raise DataError(f"{folder} is RLDS, which does not say its rate: pass --control-hz")
        return Rlds(folder, control_hz, split)
    if next(folder.rglob(BRIDGE), None):
        from vla.data.bridge import Bridge  # noqa: PLC0415

        return Bridge(folder)
    if next(folder.rglob(RLBENCH), None):
        from vla.data.rlbench import RlBench  # noqa: PLC0415

        return RlBench(folder)
    there = f"neither {INFO}, {DESCRIPTION} nor {RLDS}, and below it is neither {BRIDGE} nor {RLBENCH}"
    raise DataError(f"{folder} is no data set: it has {there}")
