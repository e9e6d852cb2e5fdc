"""Which format a folder has."""

from pathlib import Path

from vla.data.episodes import DataError, Source
from vla.data.lerobot.layout import INFO, is_lerobot
from vla.tabletop.demonstrations import DESCRIPTION, Demonstrations


def is_recorded(data: Path) -> bool:
    """Whether training takes this for recorded data: a mixture's file, or a folder of LeRobot's."""
    return data.suffix == ".json" or is_lerobot(data)


def open_source(folder: Path) -> Source:
    """Open a data set of any format that is read here.

    Raises:
        DataError: the folder is missing, of no known format, or damaged.
        DatasetError: demonstrations of the tabletop are damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    # What follows takes a while to import.
    if is_lerobot(folder):
        from vla.data.lerobot.reader import Dataset  # noqa: PLC0415

        return Dataset(folder)
    if (folder / DESCRIPTION).is_file():
        from vla.data.tabletop import Tabletop  # noqa: PLC0415

        return Tabletop(Demonstrations.load(folder))
    raise DataError(f"{folder} is no data set: it has neither {INFO} nor {DESCRIPTION}")
