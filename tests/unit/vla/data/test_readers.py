"""Other people's formats, in folders that their own libraries wrote or read; see tests/golden/make_*.py."""

import io
import json
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from vla.data import tfrecord, unpickle
from vla.data.bridge import Bridge
from vla.data.episodes import DataError, Episode
from vla.data.formats import open_source
from vla.data.lerobot.reader import Dataset
from vla.data.mixture import Mixture, load
from vla.data.recipe import Ingredient, Recipe
from vla.data.rlbench import CLASSES, RlBench
from vla.data.rlds import Rlds

GOLDEN = Path(__file__).parents[3] / "golden"
# How far TensorFlow's faster decoder of JPEG is from Pillow's in pictures of noise, on average [of 255].
ROUNDED = 2


def pixels(episode: Episode, camera: str) -> np.ndarray:
    return np.stack([np.asarray(picture.convert("RGB")) for picture in episode.images[camera]])


# --- RLDS


def test_rlds_is_read_as_tensorflow_datasets_reads_it() -> None:
    expected = np.load(GOLDEN / "rlds/frames.npz")
    source = Rlds(GOLDEN / "rlds", 5.0)
    episodes = list(source)

    assert len(source) == len(episodes) == 3
    assert source.about.cameras == {"image_0": (16, 24), "wrist": (8, 8)}
    lengths = np.bincount(expected["episode"])
    assert [len(each) for each in episodes] == lengths.tolist()
    for name, ours in (("observation/state", "state"), ("action", "actions")):
        assert np.array_equal(np.concatenate([getattr(each, ours) for each in episodes]), expected[name])
    said = [command for each in episodes for command in each.commands]
    assert said == expected["language_instruction"].tolist()
    seen = np.concatenate([pixels(each, "image_0") for each in episodes])
    assert np.array_equal(seen, expected["observation/image_0"])
    wrist = np.concatenate([pixels(each, "wrist") for each in episodes]).astype(int)
    assert abs(wrist - expected["observation/wrist"]).mean() < ROUNDED
    assert abs(wrist - expected["observation/wrist"][::-1]).mean() > 20


def test_rlds_with_a_dictionary_of_actions_is_read_as_tensorflow_datasets_reads_it() -> None:
    expected = np.load(GOLDEN / "rlds_nested/frames.npz")
    source = Rlds(GOLDEN / "rlds_nested", 3.0)
    episodes = list(source)
    actions = np.concatenate([each.actions for each in episodes])
    state = np.concatenate([each.state for each in episodes])

    assert source.about.action[:2] == ("gripper", "terminate_0")
    assert source.about.state == ("base_pose_0", "base_pose_1", "base_pose_2", "gripper_closed")
    for name, columns in (("gripper", [0]), ("terminate", [1, 2, 3]), ("world_vector", [4, 5, 6])):
        assert np.array_equal(actions[:, columns], expected[f"action/{name}"].astype(np.float32)), name
    assert np.array_equal(state[:, 3:], expected["observation/gripper_closed"])
    assert np.array_equal(state[:, :3], expected["observation/base_pose"].astype(np.float32))
    said = [command for each in episodes for command in each.commands]
    assert said == expected["observation/natural_language_instruction"].tolist()


def damaged(folder: Path, change: Callable[[bytearray], bytes]) -> None:
    path = min(folder.glob("*.tfrecord-*"))
    path.write_bytes(change(bytearray(path.read_bytes())))


def flipped(place: int) -> Callable[[bytearray], bytes]:
    def flip(data: bytearray) -> bytes:
        data[place] ^= 1
        return bytes(data)

    return flip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flipped(500), "record 0 is damaged: its checksum is"),
        (flipped(2), "record 0 is damaged: its checksum is"),
        (flipped(-1), "record 1 is damaged: its checksum is"),
        (lambda data: bytes(data[:-20]), "record 1 is cut short"),
        (lambda data: bytes(data[:5]), "record 0 is cut short"),
        (lambda _: b"", "0 episodes, dataset_info.json says 2"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    folder = shutil.copytree(GOLDEN / "rlds", tmp_path / "rlds")
    damaged(folder, change)
    with pytest.raises(DataError, match=re.escape(message)):
        list(Rlds(folder, 5.0))


def record(content: bytes) -> bytes:
    """Frame a record as TensorFlow does."""

    def masked(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(content))
    return length + masked(length) + content + masked(content)


@pytest.mark.parametrize("content", [b"\x0a\xff", b"\x0a\x05ab", b"\x0b", b"\xff" * 11, b"\x0a\x02\x0a\x09"])
def test_what_is_no_example_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(record(content))
    with pytest.raises(DataError, match=r"no tf\.train\.Example"):
        tfrecord.example(next(tfrecord.records(path)))


def test_a_missing_number_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "rlds", tmp_path / "rlds")
    features = (folder / "features.json").read_text().replace('"action"', '"acting"')
    (folder / "features.json").write_text(features)
    with pytest.raises(DataError, match="the steps have no action"):
        Rlds(folder, 5.0)
    with pytest.raises(DataError, match="no split 'val'; there are train"):
        Rlds(GOLDEN / "rlds", 5.0, "val")


def test_numbers_of_another_width_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "rlds", tmp_path / "rlds")
    features = json.loads((folder / "features.json").read_text())
    step = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    step["action"]["tensor"]["shape"]["dimensions"] = ["5"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(DataError, match="record 0: steps/action is not the numbers"):
        list(Rlds(folder, 5.0))


# --- BridgeData V2


def test_bridge_is_read_as_its_authors_conversion_reads_it() -> None:
    expected, source = np.load(GOLDEN / "bridge/frames.npz"), Bridge(GOLDEN / "bridge")
    keys = sorted({name.rsplit("/", 1)[0] for name in expected})

    assert source.about.cameras == {"images0": (24, 32), "images1": (24, 32)}
    assert len(source) == len(keys) == 4
    for key, episode in zip(keys, source, strict=True):
        np.testing.assert_allclose(episode.state, expected[f"{key}/state"], rtol=1e-6, err_msg=key)
        np.testing.assert_allclose(episode.actions, expected[f"{key}/actions"], rtol=1e-6, err_msg=key)
        assert episode.commands[0] == expected[f"{key}/language"][0]
        # It makes all pictures square.
        square = [picture.resize((32, 32), Image.Resampling.LANCZOS) for picture in episode.images["images1"]]
        assert np.array_equal(np.stack([np.asarray(each) for each in square]), expected[f"{key}/images1"])


# --- RLBench


def test_rlbench_is_read_with_the_numbers_of_its_own_objects() -> None:
    expected, source = np.load(GOLDEN / "rlbench/frames.npz"), RlBench(GOLDEN / "rlbench")
    episodes = list(source)

    assert source.about.cameras == {"front": (16, 16), "wrist": (16, 16)}
    assert [len(each) for each in episodes] == [4, 11, 3]
    for key, episode in zip(("0/0", "0/1", "1/0"), episodes, strict=True):
        values = expected[key].astype(np.float32)
        assert np.array_equal(episode.state, values)
        assert np.array_equal(episode.actions[:-1], values[1:, 7:])
        assert np.array_equal(episode.actions[-1], values[-1, 7:])
    assert [each.commands[0] for each in episodes] == [
        "close the jar 0",
        "put the lid on 0",
        "close the jar 1",
    ]


def test_rlbench_s_pictures_come_in_the_order_of_their_numbers() -> None:
    folder = GOLDEN / "rlbench/close_jar/variation0/episodes/episode1/front_rgb"
    seen = pixels(list(RlBench(GOLDEN / "rlbench"))[1], "front")

    for index in (2, 10):
        assert np.array_equal(seen[index], np.asarray(Image.open(folder / f"{index}.png")))


# --- Pickles


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "i8", "?", "S3", "U4"])
def test_arrays_come_as_they_were(tmp_path: Path, protocol: int, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    value = {"c": array, "f": np.asfortranarray(array), "scalar": array[1, 2], "empty": array[:0]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol))
    found = unpickle.load(tmp_path / "x.pkl")

    for name, expected in value.items():
        assert np.array_equal(np.asarray(found[name]), expected), name
        assert np.asarray(found[name]).shape == np.asarray(expected).shape


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Hostile(subprocess.call, ["true"]), "names subprocess.call, which is not read"),
        (Hostile(eval, "1"), "names builtins.eval, which is not read"),
        (Hostile(getattr, [], "append"), "names builtins.getattr, which is not read"),
        (np.array([{"a": 1}], dtype=object), "arrays of O8 are not read"),
        (np.zeros(2, dtype=[("a", "f4")]), "arrays of V4 are not read"),
        (Path("/"), "names pathlib.PosixPath, which is not read"),
    ],
)
def test_what_a_pickle_may_not_name_is_refused(tmp_path: Path, value: object, message: str) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match=re.escape(message)):
        unpickle.load(tmp_path / "x.pkl", CLASSES)


def test_nothing_runs_before_it_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    value = [Hostile(Path.touch, mark), Hostile(print, "never")]
    for protocol in range(6):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(DataError, match="which is not read"):
            unpickle.load(tmp_path / "x.pkl")
    assert not mark.exists()


def test_a_pickle_can_t_change_the_classes_it_gets(tmp_path: Path) -> None:
    # GLOBAL rlbench.demo.Demo, BUILD with (None, {"x": 1}): sets attributes of the class itself.
    (tmp_path / "x.pkl").write_bytes(b"crlbench.demo\nDemo\n(N}X\x01\x00\x00\x00xK\x01stb.")
    with pytest.raises(DataError, match="Record is sealed"):
        unpickle.load(tmp_path / "x.pkl", CLASSES)
    assert not hasattr(unpickle.Record, "x")


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"nonsense", pickle.dumps([1])[:-3]])
def test_a_malformed_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(DataError, match="no readable pickle"):
        unpickle.load(tmp_path / "x.pkl")


# --- Damaged folders of the two


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("bridge", "obs_dict.pkl", pickle.dumps({}), "has no full_state"),
        ("bridge", "policy_out.pkl", pickle.dumps([{"a": 1}]), "is no list of actions"),
        ("bridge", "policy_out.pkl", pickle.dumps([np.zeros(7)]), "as many frames of each"),
        ("bridge", "images1/im_1.jpg", b"no picture", "a picture can't be read"),
        ("rlbench", "low_dim_obs.pkl", pickle.dumps([1, 2]), "holds no observations"),
        ("rlbench", "variation_descriptions.pkl", pickle.dumps([]), "no list of sentences"),
        ("rlbench", "front_rgb/1.png", None, "as many frames of each"),
    ],
)
def test_a_damaged_folder_is_refused(
    tmp_path: Path, name: str, file: str, content: bytes | None, message: str
) -> None:
    folder = shutil.copytree(GOLDEN / name, tmp_path / name)
    path = max(folder.rglob(file))
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(open_source(folder))


# --- Into LeRobot's format


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vla.data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["rlds_nested", "bridge", "rlbench"])
def test_every_format_is_written_in_lerobot_s(tmp_path: Path, name: str) -> None:
    options = ["--control-hz", "5"] if name.startswith("rlds") else []
    done = run("write", GOLDEN / name, "--out", tmp_path / "set", *options)
    source, written = open_source(GOLDEN / name, 5.0), Dataset(tmp_path / "set")

    assert done.returncode == 0, done.stderr
    assert written.about == source.about
    for one, other in zip(source, written, strict=True):
        assert np.array_equal(one.state, other.state)
        assert np.array_equal(one.actions, other.actions)
        assert one.commands == other.commands
        assert all(np.array_equal(pixels(one, camera), pixels(other, camera)) for camera in one.images)


def test_rlds_without_a_rate_and_folders_of_nothing_are_refused(tmp_path: Path) -> None:
    without = run("write", GOLDEN / "rlds", "--out", tmp_path / "set")

    assert without.returncode == 1
    assert "does not say its rate: pass --control-hz" in without.stderr
    with pytest.raises(DataError, match="is no data set: it has neither"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        open_source(tmp_path / "nowhere")


def test_a_mixture_of_all_formats() -> None:
    names = {"rlds": 5.0, "rlds_nested": 3.0, "bridge": None, "rlbench": None, "lerobot_video": None}
    recipe = Recipe(tuple(Ingredient(str(GOLDEN / name), control_hz=rate) for name, rate in names.items()))
    mixture = Mixture(recipe, load(recipe, 16), horizon=4, seed=0)
    samples = mixture.batch(0, 64)

    assert set(samples.dataset) == set(range(5))
    assert {"image_0", "image", "images0", "front"} <= set(mixture.cameras)
    for index, part in enumerate(mixture.parts):
        mine = samples.dataset == index
        assert np.array_equal(
            samples.seen[mine], np.broadcast_to(part.cameras >= 0, samples.seen[mine].shape)
        )
        assert not samples.images[mine][:, part.cameras < 0].any()


def test_pictures_are_read_without_open_files() -> None:
    episode = next(iter(Bridge(GOLDEN / "bridge")))

    assert all(isinstance(each.fp, io.BytesIO) for each in episode.images["images0"])  # type: ignore[attr-defined]
