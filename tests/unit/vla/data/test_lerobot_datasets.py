"""LeRobot's format: what the real library wrote is read frame for frame, and what we write is read back."""

# pyarrow ships no type information.
# pyright: reportMissingImports=false

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vla.data.episodes import About, DataError, Episode
from vla.data.lerobot import statistics
from vla.data.lerobot.layout import Feature, camera_of
from vla.data.lerobot.reader import Dataset
from vla.data.lerobot.writer import write
from vla.data.tabletop import Tabletop
from vla.tabletop.collection import Collection, collect
from vla.tabletop.commands import GOALS
from vla.tabletop.demonstrations import Demonstrations

GOLDEN = Path(__file__).parents[3] / "golden"
ABOUT = About("arm", 20.0, {"left": (4, 6), "right": (8, 8)}, ("x", "y"), ("dx",))


def drawn(length: int, seed: int, *, success: bool | None = None) -> Episode:
    random = np.random.default_rng(seed)
    pictures = {
        name: [Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)) for _ in range(length)]
        for name, size in ABOUT.cameras.items()
    }
    state, actions = random.normal(size=(length, 2)), random.normal(size=(length, 1))
    commands = tuple(f"command {seed % 2}" for _ in range(length))
    return Episode(pictures, state.astype(np.float32), actions.astype(np.float32), commands, success)


def pixels(episode: Episode, camera: str) -> np.ndarray:
    return np.stack([np.asarray(picture.convert("RGB")) for picture in episode.images[camera]])


def assert_same(one: Episode, other: Episode) -> None:
    assert one.images.keys() == other.images.keys()
    assert all(np.array_equal(pixels(one, name), pixels(other, name)) for name in one.images)
    assert np.array_equal(one.state, other.state)
    assert np.array_equal(one.actions, other.actions)
    assert (one.commands, one.success) == (other.commands, other.success)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demos` writes, small."""
    out = tmp_path_factory.mktemp("demonstrations") / "tabletop"
    collect(Collection(out, 4, seed=3, horizon=2, image_size=32, workers=1))
    return out


@pytest.mark.parametrize("name", ["lerobot_images", "lerobot_video"])
def test_what_the_real_library_wrote_is_read_frame_for_frame(name: str) -> None:
    dataset, expected = Dataset(GOLDEN / name), np.load(GOLDEN / name / "frames.npz")
    episodes = list(dataset)

    assert np.array_equal(np.concatenate([each.state for each in episodes]), expected["observation.state"])
    assert np.array_equal(np.concatenate([each.actions for each in episodes]), expected["action"])
    assert [command for each in episodes for command in each.commands] == expected["task"].tolist()
    numbers = np.concatenate([[i] * len(each) for i, each in enumerate(episodes)])
    assert np.array_equal(numbers, expected["episode_index"])
    assert [each.success for each in episodes] == [True, False, True][: len(episodes)]
    for camera, column in dataset.info.cameras.items():
        seen = np.concatenate([pixels(each, camera) for each in episodes])
        assert np.array_equal(seen, expected[column]), camera


def test_names_of_the_real_library_s_robot() -> None:
    about = Dataset(GOLDEN / "lerobot_images").about

    assert about.cameras == {"front": (24, 32), "wrist": (16, 16)}
    assert about.state == about.action == ("shoulder_pan.pos", "shoulder_lift.pos", "gripper.pos")
    assert (about.robot, about.control_hz) == ("so100", 10)


def test_statistics_are_the_real_library_s() -> None:
    dataset = Dataset(GOLDEN / "lerobot_images")
    for column, values in (("observation.state", "state"), ("action", "actions")):
        ours = statistics.joined([statistics.of_vectors(getattr(each, values)) for each in dataset])
        for name, expected in dataset.statistics[column].items():
            np.testing.assert_allclose(ours[name], expected, rtol=1e-5, atol=1e-4, err_msg=f"{column} {name}")


def test_statistics_of_pictures_are_the_real_library_s_but_for_std() -> None:
    """LeRobot 0.4.4 squares pictures in 8 bits, which wrap round: its `std` is not that of the pixels."""
    dataset = Dataset(GOLDEN / "lerobot_images")
    ours = statistics.joined([statistics.of_pictures(each.images["front"]) for each in dataset])
    for name, expected in dataset.statistics["observation.images.front"].items():
        if name != "std":
            np.testing.assert_allclose(ours[name], expected, rtol=1e-9, err_msg=name)
    every = np.concatenate([pixels(each, "front") for each in dataset]) / 255
    np.testing.assert_allclose(ours["std"][:, 0, 0], every.std((0, 1, 2)), rtol=1e-9)


def test_long_episodes_are_sampled_and_large_pictures_thinned() -> None:
    pictures = [Image.new("RGB", (640, 320), (index % 256, 0, 0)) for index in range(1200)]

    assert statistics.of_pictures(pictures)["count"] == int(1200**0.75)


@pytest.mark.parametrize("file_mb", [100.0, 1e-4])
def test_what_is_written_is_read_back(tmp_path: Path, file_mb: float) -> None:
    episodes = [drawn(length, seed) for seed, length in enumerate((5, 1, 7))]
    write(ABOUT, episodes, tmp_path / "set", file_mb=file_mb)
    dataset = Dataset(tmp_path / "set")

    assert dataset.about == ABOUT
    assert len(list((tmp_path / "set/data/chunk-000").iterdir())) == (1 if file_mb == 100 else 3)
    for written, found in zip(episodes, dataset, strict=True):
        assert_same(written, found)
    assert_same(episodes[1], dataset.episode(1))


def test_one_row_group_for_all_episodes_is_read_too(tmp_path: Path) -> None:
    episodes = [drawn(length, seed) for seed, length in enumerate((5, 2, 7))]
    write(ABOUT, episodes, tmp_path / "set")
    path = tmp_path / "set/data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=9)

    for written, found in zip(episodes, Dataset(tmp_path / "set"), strict=True):
        assert_same(written, found)


def test_demonstrations_become_episodes_of_one_goal(demonstrations: Path, tmp_path: Path) -> None:
    data = Demonstrations.load(demonstrations)
    source = Tabletop(data)
    write(source.about, source, tmp_path / "set")
    episodes = list(Dataset(tmp_path / "set"))

    assert sum(map(len, episodes)) == len(data)
    assert len(episodes) > data.description.episodes
    assert np.array_equal(np.concatenate([pixels(each, "front") for each in episodes]), data.images)
    assert np.array_equal(np.concatenate([each.state for each in episodes]), data.state)
    row = 0
    for episode in episodes:
        goal = int(data.goal[row])
        assert (data.goal[row : row + len(episode)] == goal).all()
        assert GOALS[goal].colour in episode.commands[0]
        assert np.array_equal(episode.actions, data.actions[row : row + len(episode), goal, 0])
        row += len(episode)
        more = row < len(data) and data.episode[row] == data.episode[row - 1]
        assert episode.success or not more


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vla.data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_writes_shows_and_refuses_to_overwrite(demonstrations: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    first = run("write", demonstrations, "--out", out)
    again = run("write", demonstrations, "--out", out)

    assert first.returncode == 0, first.stderr
    assert "episode/s" in first.stderr
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1] == f"error: {out} exists; choose another --out or pass --overwrite"
    assert "camera   front, 32 x 32" in run("show", out).stdout
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set to spoil."""
    return shutil.copytree(GOLDEN / "lerobot_images", tmp_path / "set")


def spoil_info(folder: Path, **values: object) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def spoil(folder: Path, kind: str) -> None:
    info, data = (
        json.loads((folder / "meta/info.json").read_text()),
        folder / "data/chunk-000/file-000.parquet",
    )
    if kind == "version":
        spoil_info(folder, codebase_version="v2.1")
    elif kind == "no action":
        spoil_info(folder, features={"observation.state": info["features"]["observation.state"]})
    elif kind == "count":
        spoil_info(folder, total_episodes=4)
    elif kind == "cut":
        data.write_bytes(data.read_bytes()[:-100])
    elif kind == "missing":
        data.unlink()
    elif kind == "other rows":
        pq.write_table(pq.read_table(data).slice(1), data)
    elif kind == "no statistics":
        (folder / "meta/stats.json").unlink()
    else:
        (folder / "meta/info.json").write_text("{")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("version", "version v2.1, expected v3.0"),
        ("no action", "no column 'action'"),
        ("count", "has 3 episodes, meta/info.json says 4"),
        ("cut", "file-000.parquet is no readable parquet file"),
        ("missing", "file-000.parquet is missing"),
        ("other rows", "should be the 6 frames of episode 0"),
        ("no statistics", "without statistics nothing can be normalised"),
        ("malformed", "meta/info.json: "),
    ],
)
def test_a_damaged_folder_is_refused(folder: Path, kind: str, message: str) -> None:
    spoil(folder, kind)

    with pytest.raises(DataError, match=re.escape(message)):
        _ = [len(each) for each in Dataset(folder)], Dataset(folder).statistics


def test_a_damaged_video_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "lerobot_video", tmp_path / "set")
    video = next(folder.glob("videos/**/*.mp4"))
    video.write_bytes(video.read_bytes()[:200])

    with pytest.raises(DataError, match="the video can't be read"):
        list(Dataset(folder))


def test_a_video_that_is_too_short_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "lerobot_video", tmp_path / "set")
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    name = "videos/observation.images.front/from_timestamp"
    late = table.column(name).to_numpy() + 0.3
    pq.write_table(table.set_column(table.column_names.index(name), name, [late]), path)

    with pytest.raises(DataError, match=r"no frame at 1\.100 s, 2 of 5 found"):
        Dataset(folder).episode(1)


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (Episode({}, np.zeros((1, 2), np.float32), np.zeros((1, 1), np.float32), ("go",)), "cameras"),
        (
            replace(drawn(3, 0), state=np.full((3, 2), np.nan, np.float32)),
            "not finite",
        ),
    ],
)
def test_an_episode_that_does_not_fit_leaves_nothing(tmp_path: Path, episode: Episode, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write(ABOUT, [drawn(2, 1), episode], tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_an_episode_needs_as_many_frames_of_each() -> None:
    with pytest.raises(DataError, match="as many frames of each"):
        Episode({}, np.zeros((2, 1), np.float32), np.zeros((1, 1), np.float32), ("go", "go"))


def test_names_of_dimensions_and_cameras() -> None:
    assert Feature("float32", (2,), {"motors": ["a", "b"]}).dimensions("state") == ("a", "b")
    assert Feature("float32", (2,), None).dimensions("state") == ("state_0", "state_1")
    assert Feature("float32", (2,), ["state"]).dimensions("state") == ("state_0", "state_1")
    assert camera_of("observation.images.cam-high") == "cam_high"
    assert camera_of("observation.image") == "image"


def test_pictures_of_other_formats_are_read(folder: Path) -> None:
    """Other writers keep JPEG."""
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    column = "observation.images.wrist"
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 10, 10)).save(buffer, "JPEG")
    rows = [{"bytes": buffer.getvalue(), "path": None}] * len(table)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, [rows]), path)

    assert abs(pixels(Dataset(folder).episode(2), "wrist").astype(int) - (200, 10, 10)).max() < 4
