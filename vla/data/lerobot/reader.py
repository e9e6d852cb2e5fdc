"""Read data sets in LeRobot's format."""

# pyarrow ships no type information.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from vla.data.episodes import About, DataError, Episode
from vla.data.lerobot import layout, videos
from vla.data.lerobot.layout import ACTION, STATE, SUCCESS, Info, read_info


@dataclass(frozen=True)
class Row:
    """What `meta/episodes` says of one episode."""

    index: int
    first: int
    last: int
    # Where its frames lie.
    path: Path
    # Column of a camera -> where its video lies, and the time at which the episode begins in it [s].
    videos: dict[str, tuple[Path, float]]


class Dataset:
    """A folder in LeRobot's format; a `Source`.

    Raises:
        DataError: a file is missing, malformed, of another version, or contradicts another.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.info: Info = read_info(self.folder)
        self.about: About = self.info.about()
        self._kept: tuple[Path, int, pa.Table] | None = None

    def __len__(self) -> int:
        """Count the episodes."""
        return len(self.rows)

    def __iter__(self) -> Iterator[Episode]:
        """Read the episodes in order, one at a time."""
        return (self.episode(index) for index in range(len(self)))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The episodes, in order."""
        paths = sorted((self.folder / "meta/episodes").glob("*/*.parquet"))
        if not paths:
            raise DataError(f"{self.folder}: meta/episodes holds no parquet file")
        kept = [row for path in paths for row in _records(path)]
        kept.sort(key=lambda row: row["episode_index"])
        if len(kept) != self.info.total_episodes:
            raise DataError(
                f"{self.folder}: meta/episodes has {len(kept)} episodes, {layout.INFO} says "
                f"{self.info.total_episodes}"
            )
        return tuple(self._row(row) for row in kept)

    @cached_property
    def _begins(self) -> dict[Path, int]:
        """The first frame of each file: a file begins with the first episode that names it."""
        begins: dict[Path, int] = {}
        for row in self.rows:
            begins[row.path] = min(row.first, begins.get(row.path, row.first))
        return begins

    @cached_property
    def tasks(self) -> dict[int, str]:
        """The commands by their numbers."""
        columns = _read(self.folder / layout.TASKS).to_pydict()
        names = next(values for name, values in columns.items() if name != "task_index")
        return dict(zip(columns["task_index"], names, strict=True))

    @cached_property
    def statistics(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """What `meta/stats.json` says: column -> `mean`, `std`, `min`, `max`, `count` and quantiles."""
        path = self.folder / layout.STATS
        try:
            values = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Any]])
        except FileNotFoundError:
            raise DataError(f"{path} is missing: without statistics nothing can be normalised") from None
        except msgspec.DecodeError as error:
            raise DataError(f"{path}: {error}") from error
        return {
            name: {key: np.asarray(value, np.float64) for key, value in each.items()}
            for name, each in values.items()
        }

    def episode(self, index: int) -> Episode:
        """Read one episode.

        Raises:
            DataError: a file is missing or does not hold the frames that the episode's row names.
        """
        row = self.rows[index]
        table = self._frames(row)
        numbers = self._column(table, "task_index").astype(int).tolist()
        success = self._column(table, SUCCESS).any() if SUCCESS in table.column_names else None
        state = self._column(table, STATE) if self.about.state else np.zeros((len(table), 0))
        try:
            commands = tuple(self.tasks[number] for number in numbers)
        except KeyError as error:
            raise DataError(f"{row.path}: episode {index} has a task {error} without a command") from None
        return Episode(
            images={
                camera: self._pictures(row, table, column) for camera, column in self.info.cameras.items()
            },
            state=state.reshape(len(table), -1).astype(np.float32),
            actions=self._column(table, ACTION).reshape(len(table), -1).astype(np.float32),
            commands=commands,
            success=None if success is None else bool(success),
        )

    def _row(self, values: dict[str, Any]) -> Row:
        found = {}
        for column, feature in self.info.features.items():
            if feature.dtype == "video":
                key = f"videos/{column}"
                path = (self.info.video_path or layout.VIDEO).format(video_key=column, **_file(values, key))
                found[column] = (self.folder / path, float(values[f"{key}/from_timestamp"]))
        return Row(
            index=values["episode_index"],
            first=values["dataset_from_index"],
            last=values["dataset_to_index"],
            path=self.folder / self.info.data_path.format(**_file(values, "data")),
            videos=found,
        )

    def _frames(self, row: Row) -> pa.Table:
        """Return the frames of an episode."""
        begin = self._begins[row.path]
        first, table = self._groups(row.path, row.first - begin, row.last - begin)
        table = table.slice(row.first - begin - first, row.last - row.first)
        found = set(table.column("episode_index").to_pylist()) if len(table) else set()
        if len(table) != row.last - row.first or found != {row.index}:
            raise DataError(
                f"{row.path}: rows {row.first - begin} to {row.last - begin} should be the "
                f"{row.last - row.first} frames of episode {row.index}, but are {len(table)} of "
                f"{sorted(found)}"
            )
        return table

    def _groups(self, path: Path, first: int, last: int) -> tuple[int, pa.Table]:
        """Read the row groups that hold these rows; returns the first row of them, and the rows."""
        with _opened(path) as file:
            sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = [i for i, end in enumerate(ends) if end > first and end - sizes[i] < last]
            if not groups:
                return 0, file.schema_arrow.empty_table()
            begin = int(ends[groups[0]] - sizes[groups[0]])
            # Files of other writers keep all episodes in one group: it is not read again for each of them.
            if self._kept is None or self._kept[:2] != (path, begin) or len(groups) > 1:
                self._kept = (path, begin, file.read_row_groups(groups))
        return self._kept[1:]

    def _column(self, table: pa.Table, name: str) -> NDArray:
        if name not in table.column_names:
            raise DataError(f"{self.folder}: the frames lack the column {name!r}")
        column = table.column(name).combine_chunks()
        while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        return column.to_numpy(zero_copy_only=False)

    def _pictures(self, row: Row, table: pa.Table, column: str) -> Sequence[Image.Image]:
        if column in row.videos:
            path, begin_s = row.videos[column]
            times = begin_s + self._column(table, "timestamp").astype(np.float64)
            return videos.read(path, times, self.info.fps)
        if column not in table.column_names:
            raise DataError(f"{self.folder}: the frames lack the column {column!r}")
        return [self._picture(each, column) for each in table.column(column).to_pylist()]

    def _picture(self, value: dict[str, Any], column: str) -> Image.Image:
        try:
            content = value["bytes"]
            return Image.open(io.BytesIO(content) if content is not None else self.folder / value["path"])
        except OSError as error:
            raise DataError(f"{self.folder}: a picture of {column} can't be read: {error}") from error


def _file(values: dict[str, Any], key: str) -> dict[str, int]:
    return {name: values[f"{key}/{name}"] for name in ("chunk_index", "file_index")}


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable parquet file: {error}") from error


def _read(path: Path) -> pa.Table:
    with _opened(path) as file:
        return file.read()


def _records(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of episodes, without their statistics."""
    with _opened(path) as file:
        names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
        return file.read(names).to_pylist()
