"""Write a data set in LeRobot's format, pictures as PNG inside the parquet files."""

# pyarrow ships no type information.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import io
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vla.data.episodes import About, Episode
from vla.data.lerobot import layout, statistics
from vla.data.lerobot.layout import ACTION, DATA_MB, IMAGES, INDICES, STATE, SUCCESS, Feature, Info
from vla.data.lerobot.statistics import Summary

MB = 1024**2


def write(
    about: About, episodes: Iterable[Episode], out: Path, *, overwrite: bool = False, file_mb: float = DATA_MB
) -> Info:
    """Write a folder, whole or not at all.

    Args:
        about: what the episodes have in common
        episodes: read one at a time
        out: the folder
        overwrite: replace the folder where there is one
        file_mb: where a file of frames is full [MB]

    Raises:
        FileExistsError: the folder exists and is not to be replaced.
        DataError: an episode does not fit `about`.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; choose another --out or pass --overwrite")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        info = _Writer(about, temporary, file_mb).write(episodes)
        temporary.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return info


def features_of(about: About, *, judged: bool) -> dict[str, Feature]:
    """Return the columns of a data set; `judged`: its episodes say whether they succeeded."""
    axes = ["height", "width", "channels"]
    columns = {
        f"{IMAGES}{camera}": Feature("image", (height, width, 3), axes)
        for camera, (height, width) in about.cameras.items()
    }
    if about.state:
        columns[STATE] = Feature("float32", (len(about.state),), list(about.state))
    columns[ACTION] = Feature("float32", (len(about.action),), list(about.action))
    if judged:
        columns[SUCCESS] = Feature("bool", (1,))
    columns["timestamp"] = Feature("float32", (1,))
    return columns | {name: Feature("int64", (1,)) for name in INDICES}


class _Writer:
    """One folder being written."""

    def __init__(self, about: About, folder: Path, file_mb: float) -> None:
        self._about, self._folder, self._file_mb = about, folder, file_mb
        self._features: dict[str, Feature] = {}
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._summaries: list[dict[str, Summary]] = []
        self._frames = 0
        self._file = -1
        self._parquet: pq.ParquetWriter | None = None

    def write(self, episodes: Iterable[Episode]) -> Info:
        """Write all of them, then what is said of them."""
        try:
            for episode in episodes:
                self._add(episode)
        finally:
            if self._parquet is not None:
                self._parquet.close()
        self._write_meta()
        return self._write_info()

    def _add(self, episode: Episode) -> None:
        """Write an episode's frames, and keep what its row will say."""
        episode.check(self._about)
        if not self._features:
            self._features = features_of(self._about, judged=episode.success is not None)
        for command in episode.commands:
            self._tasks.setdefault(command, len(self._tasks))
        columns = self._columns(episode)
        table = self._table(columns, episode)
        self._open(table.schema).write_table(table)
        summaries = {name: statistics.of_vectors(values) for name, values in columns.items()}
        for camera, pictures in episode.images.items():
            summaries[f"{IMAGES}{camera}"] = statistics.of_pictures(pictures)
        first, self._frames = self._frames, self._frames + len(episode)
        self._rows.append(
            {
                "episode_index": len(self._rows),
                "tasks": list(dict.fromkeys(episode.commands)),
                "length": len(episode),
                "data/chunk_index": self._file // layout.CHUNK_FILES,
                "data/file_index": self._file % layout.CHUNK_FILES,
                "dataset_from_index": first,
                "dataset_to_index": self._frames,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
        self._summaries.append(summaries)

    def _columns(self, episode: Episode) -> dict[str, np.ndarray]:
        """Return what is no picture: [n, D] each, in the order of the features."""
        frames = np.arange(len(episode))
        values: dict[str, np.ndarray] = {
            STATE: episode.state.astype(np.float32),
            ACTION: episode.actions.astype(np.float32),
            SUCCESS: (frames == len(frames) - 1) & bool(episode.success),
            "timestamp": (frames / self._about.control_hz).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(len(frames), len(self._rows)),
            "index": self._frames + frames,
            "task_index": np.array([self._tasks[command] for command in episode.commands]),
        }
        named = [name for name, feature in self._features.items() if not feature.pictured]
        return {name: values[name].reshape(len(frames), -1) for name in named}

    def _table(self, columns: dict[str, np.ndarray], episode: Episode) -> pa.Table:
        """Return an episode's frames, one a row."""
        arrays = {}
        for name, feature in self._features.items():
            if feature.pictured:
                pictures = episode.images[name.removeprefix(IMAGES)]
                rows = [{"bytes": _png(picture), "path": None} for picture in pictures]
                arrays[name] = pa.array(rows, _arrow_type(feature))
            elif feature.shape == (1,):
                arrays[name] = pa.array(columns[name][:, 0], _arrow_type(feature))
            else:
                arrays[name] = pa.array(list(columns[name]), _arrow_type(feature))
        table = pa.table(arrays)
        return table.replace_schema_metadata({"huggingface": _described(self._features)})

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        """Return the file that the next episode goes into; one that is full is closed."""
        if self._parquet is not None:
            if self._path(layout.DATA, self._file).stat().st_size < self._file_mb * MB:
                return self._parquet
            self._parquet.close()
        self._file += 1
        path = self._path(layout.DATA, self._file)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._parquet = pq.ParquetWriter(path, schema, compression="snappy")
        return self._parquet

    def _path(self, pattern: str, file: int) -> Path:
        chunk, index = divmod(file, layout.CHUNK_FILES)
        return self._folder / pattern.format(chunk_index=chunk, file_index=index)

    def _write_meta(self) -> None:
        """Write commands, episodes and statistics."""
        path = self._path(layout.EPISODES, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            row
            | {
                f"stats/{name}/{key}": value.tolist()
                for name, each in summary.items()
                for key, value in each.items()
            }
            for row, summary in zip(self._rows, self._summaries, strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(rows), path)
        names = list(self._tasks)
        tasks = pa.table({"task_index": list(self._tasks.values()), "__index_level_0__": names})
        pq.write_table(tasks.replace_schema_metadata({"pandas": PANDAS}), self._folder / layout.TASKS)
        whole = (
            {name: statistics.joined([each[name] for each in self._summaries]) for name in self._features}
            if self._summaries
            else {}
        )
        plain = {name: {key: value.tolist() for key, value in each.items()} for name, each in whole.items()}
        (self._folder / layout.STATS).write_bytes(_json(plain))

    def _write_info(self) -> Info:
        info = Info(
            codebase_version=layout.VERSION,
            robot_type=self._about.robot,
            fps=self._about.control_hz,
            features=self._features,
            total_episodes=len(self._rows),
            total_frames=self._frames,
            total_tasks=len(self._tasks),
            splits={"train": f"0:{len(self._rows)}"},
        )
        (self._folder / layout.INFO).write_bytes(_json(_plain(info)))
        return info


# How pandas, by which LeRobot reads the commands, finds them: as the table's index.
PANDAS = msgspec.json.encode(
    {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [],
        "columns": [
            {
                "name": "task_index",
                "field_name": "task_index",
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": None,
            },
            {
                "name": None,
                "field_name": "__index_level_0__",
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": None,
            },
        ],
        "pandas_version": "2.0.0",
    }
)


def _arrow_type(feature: Feature) -> pa.DataType:
    if feature.pictured:
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    kind = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}[feature.dtype]
    return kind if feature.shape == (1,) else pa.list_(kind, feature.shape[0])


def _described(features: dict[str, Feature]) -> bytes:
    """Return the columns as the library `datasets` describes them in a file's metadata."""
    columns: dict[str, Any] = {}
    for name, feature in features.items():
        value = {"dtype": feature.dtype, "_type": "Value"}
        if feature.pictured:
            columns[name] = {"_type": "Image"}
        elif feature.shape == (1,):
            columns[name] = value
        else:
            columns[name] = {"feature": value, "length": feature.shape[0], "_type": "Sequence"}
    return msgspec.json.encode({"info": {"features": columns}})


def _plain(info: Info) -> dict[str, Any]:
    """Return the description as JSON has it: whole rates as integers, as LeRobot writes them."""
    values = msgspec.to_builtins(info)
    features = {
        name: {"dtype": each.dtype, "shape": each.shape, "names": each.names}
        for name, each in info.features.items()
    }
    whole = float(info.fps).is_integer()
    return values | {"features": features, "fps": int(info.fps) if whole else info.fps}


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=4) + b"\n"
