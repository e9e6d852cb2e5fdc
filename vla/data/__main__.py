"""`python -m vla.data`: write data sets in LeRobot's format, and say what a folder holds."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from vla.data.episodes import DataError, Episode, Source
from vla.data.formats import open_source
from vla.tabletop.demonstrations import DatasetError


@dataclass(frozen=True)
class Write:
    """Write a data set in LeRobot's format."""

    # The data set: a folder of any format that is read, see docs/data.md.
    data: tyro.conf.Positional[Path]
    # The folder to write.
    out: Path
    # Rate of RLDS, which does not say it [Hz].
    control_hz: float | None = None
    # Part of RLDS.
    split: str = "train"
    # Replace the folder if it exists.
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    # Where a file of frames is full [MB].
    file_mb: float = 100.0

    def run(self) -> str:
        """Write it; returns what was written."""
        from vla.data.lerobot.writer import write  # noqa: PLC0415

        source = open_source(self.data, self.control_hz, self.split)
        bar = tqdm(source, total=len(source), unit="episode", desc=str(self.out))
        info = write(source.about, bar, self.out, overwrite=self.overwrite, file_mb=self.file_mb)
        counts = f"{info.total_episodes} episodes, {info.total_frames} frames, {info.total_tasks} commands"
        return f"{self.out}: {counts}"


@dataclass(frozen=True)
class Show:
    """Say what a data set holds; every episode is read."""

    # The data set: a folder of any format that is read, see docs/data.md.
    data: tyro.conf.Positional[Path]
    # Rate of RLDS, which does not say it [Hz].
    control_hz: float | None = None
    # Part of RLDS.
    split: str = "train"

    def run(self) -> str:
        """Read it; returns what it holds."""
        source = open_source(self.data, self.control_hz, self.split)
        about = source.about
        lines = [f"robot    {about.robot}, {about.control_hz:g} Hz"]
        lines += [f"camera   {name}, {width} x {height}" for name, (height, width) in about.cameras.items()]
        lines += [f"state    {', '.join(about.state) or 'none'}", f"action   {', '.join(about.action)}"]
        return "\n".join([*lines, *_counted(source)])


def _counted(source: Source) -> Iterator[str]:
    lengths, judged, commands = [], [], set()
    for episode in tqdm(source, total=len(source), unit="episode", leave=False):
        _decode(episode)
        lengths.append(len(episode))
        judged.append(episode.success)
        commands.update(episode.commands)
    yield f"episodes {len(lengths)}, {sum(lengths)} frames, {len(commands)} commands"
    if None not in judged:
        yield f"success  {sum(map(bool, judged))} of {len(judged)}"


def _decode(episode: Episode) -> None:
    """Decode every picture, so that a damaged one is found."""
    try:
        for pictures in episode.images.values():
            for picture in pictures:
                picture.load()
    except OSError as error:
        raise DataError(f"a picture is damaged: {error}") from error


def main() -> None:
    """Do what the command line says; exits with 1 and a message where that is refused."""
    command = tyro.extras.subcommand_cli_from_dict({"write": Write, "show": Show}, prog="python -m vla.data")
    try:
        print(command.run())
    except (DataError, DatasetError, FileExistsError) as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed: pip install -e '.[train]'")


if __name__ == "__main__":
    main()
