"""The names of the format, and what `meta/info.json` holds."""

from pathlib import Path
from typing import Any

import msgspec

from vla.data.episodes import About, DataError

VERSION = "v3.0"
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
# Files in a folder, and where one of data or of videos is full [MB].
CHUNK_FILES, DATA_MB, VIDEO_MB = 1000, 100, 200

STATE, ACTION, IMAGES, SUCCESS = "observation.state", "action", "observation.images.", "next.success"
# One picture of a robot that has one camera only.
IMAGE = "observation.image"
# Columns that every data set has.
INDICES = ("frame_index", "episode_index", "index", "task_index")


class Feature(msgspec.Struct, frozen=True, omit_defaults=True):
    """One column: what it holds for each frame."""

    # float32, int64, bool, string; image or video for pictures.
    dtype: str
    # Height, width and channels of pictures.
    shape: tuple[int, ...]
    # Of the dimensions; a list, or groups of them by name.
    names: list[Any] | dict[str, Any] | None = None
    # Codec of a video, and other facts that nothing here needs.
    info: dict[str, Any] | None = None

    @property
    def pictured(self) -> bool:
        """Whether it holds pictures."""
        return self.dtype in ("image", "video")

    def dimensions(self, prefix: str) -> tuple[str, ...]:
        """Return the dimensions' names; numbered after `prefix` where there are none or too few."""
        names = [str(name) for name in _flat(self.names)]
        width = self.shape[0] if self.shape else 1
        return tuple(names) if len(names) == width else tuple(f"{prefix}_{i}" for i in range(width))


class Info(msgspec.Struct, frozen=True, omit_defaults=False):
    """What `meta/info.json` holds."""

    codebase_version: str
    fps: float
    features: dict[str, Feature]
    total_episodes: int
    total_frames: int
    total_tasks: int = 0
    robot_type: str | None = None
    chunks_size: int = CHUNK_FILES
    data_files_size_in_mb: float = DATA_MB
    video_files_size_in_mb: float = VIDEO_MB
    splits: dict[str, str] = {}
    data_path: str = DATA
    video_path: str | None = None

    @property
    def cameras(self) -> dict[str, str]:
        """Camera -> its column."""
        columns = [name for name, feature in self.features.items() if feature.pictured]
        return {camera_of(column): column for column in columns}

    def about(self) -> About:
        """Return what the policy needs to know.

        Raises:
            DataError: there is no action, or the state or the action is no plain vector.
        """
        state, action = self.features.get(STATE), self.features.get(ACTION)
        if action is None:
            raise DataError(f"{INFO}: no column {ACTION!r}; there are {', '.join(self.features)}")
        for name, feature in ((STATE, state), (ACTION, action)):
            if feature is not None and len(feature.shape) != 1:
                raise DataError(f"{INFO}: {name} has the shape {list(feature.shape)}, expected one axis")
        return About(
            robot=self.robot_type or "unknown",
            control_hz=float(self.fps),
            cameras={camera: self._size(column) for camera, column in self.cameras.items()},
            state=state.dimensions("state") if state else (),
            action=action.dimensions("action"),
        )

    def _size(self, column: str) -> tuple[int, int]:
        feature = self.features[column]
        if len(feature.shape) != 3:
            raise DataError(f"{INFO}: {column} has the shape {list(feature.shape)}, expected three axes")
        channels_first = list(feature.names or ())[:1] in (["channels"], ["channel"])
        height, width = feature.shape[1:] if channels_first else feature.shape[:2]
        return height, width


def camera_of(column: str) -> str:
    """Return the camera's name: letters, digits and underscores, as an archive wants it."""
    name = "image" if column == IMAGE else column.removeprefix(IMAGES)
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def is_lerobot(folder: Path) -> bool:
    """Whether a folder holds a data set of LeRobot's, of any version."""
    return (folder / INFO).is_file()


def read_info(folder: Path) -> Info:
    """Read what a folder holds.

    Raises:
        DataError: the description is missing, malformed, or of another version.
    """
    path = folder / INFO
    try:
        text = path.read_bytes()
        version = msgspec.json.decode(text).get("codebase_version")
        if version != VERSION:
            raise DataError(
                f"{path}: version {version}, expected {VERSION}, which LeRobot's "
                "convert_dataset_v21_to_v30 makes"
            )
        return msgspec.json.decode(text, type=Info)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: no data set of LeRobot's") from None
    except (msgspec.DecodeError, AttributeError) as error:
        raise DataError(f"{path}: {error}") from error


def _flat(names: Any) -> list[Any]:
    """Return names in order, whatever groups they are in."""
    if isinstance(names, dict):
        return [name for group in names.values() for name in _flat(group)]
    if isinstance(names, list):
        return [name for part in names for name in _flat(part)]
    return [] if names is None else [names]
