"""Data sets of the real LeRobot, and what it reads in ours.

    make_lerobot_data.py write          the folders that the tests read: lerobot_images and lerobot_video
    make_lerobot_data.py read IN OUT    read the folder IN frame by frame into OUT.npz, and write the same
                                        frames by LeRobot into the folder OUT

`make golden-data` and `make test-lerobot-data` run it in an environment of its own, which has LeRobot.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

HERE = Path(__file__).parent
JOINTS = ["shoulder_pan.pos", "shoulder_lift.pos", "gripper.pos"]
OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def features(cameras: dict[str, tuple[int, int]], dtype: str) -> dict[str, dict]:
    """Return the columns of a robot with three joints."""
    axes = ["height", "width", "channels"]
    columns = {
        f"observation.images.{name}": {"dtype": dtype, "shape": (*size, 3), "names": axes}
        for name, size in cameras.items()
    }
    joints = {"dtype": "float32", "shape": (len(JOINTS),), "names": JOINTS}
    judged = {"dtype": "bool", "shape": (1,), "names": None}
    return columns | {"observation.state": joints, "action": joints, "next.success": judged}


def frame(random: np.random.Generator, columns: dict[str, dict], step: int, *, last: bool) -> dict:
    """Draw a frame: pictures that change smoothly, so that a video keeps them."""
    values: dict = {"task": "pick the cup" if step < 4 else "put it down"}
    for name, column in columns.items():
        if column["dtype"] in ("image", "video"):
            height, width, _ = column["shape"]
            y, x = np.mgrid[:height, :width]
            ramp = np.stack([4 * x + 10 * step, 4 * y, np.full_like(x, 20 * step)], axis=-1)
            values[name] = (ramp % 256).astype(np.uint8)
    values["observation.state"] = random.normal(0, 40, 3).astype(np.float32)
    values["action"] = random.normal(0, 40, 3).astype(np.float32)
    values["next.success"] = np.array([last])
    return values


def record(out: Path, columns: dict[str, dict], lengths: tuple[int, ...]) -> None:
    """Record episodes; every other one succeeds."""
    shutil.rmtree(out, ignore_errors=True)
    dataset = LeRobotDataset.create("test/set", 10, columns, root=out, robot_type="so100", use_videos=True)
    random = np.random.default_rng(0)
    for episode, length in enumerate(lengths):
        for step in range(length):
            last = step == length - 1 and episode % 2 == 0
            dataset.add_frame(frame(random, columns, step, last=last))
        dataset.save_episode()
    dataset.finalize()
    shutil.rmtree(out / "images", ignore_errors=True)


def read(folder: Path) -> dict[str, np.ndarray]:
    """Return every column of every frame, pictures as uint8 [n, H, W, 3]."""
    dataset = LeRobotDataset("test/set", root=folder, video_backend="pyav")
    rows = [dataset[index] for index in range(len(dataset))]
    values = {}
    for name in (*dataset.features, "task"):
        column = [row[name] for row in rows]
        if name in dataset.meta.camera_keys:
            pictures = np.stack([each.numpy() for each in column]).transpose(0, 2, 3, 1)
            values[name] = np.round(pictures * 255).astype(np.uint8)
        else:
            values[name] = np.array([each if isinstance(each, str) else each.numpy() for each in column])
    return values


def copy(folder: Path, out: Path) -> None:
    """Write what LeRobot reads in a folder anew, by LeRobot."""
    dataset = LeRobotDataset("test/set", root=folder, video_backend="pyav")
    columns = {name: value for name, value in dataset.features.items() if name not in OWN}
    shutil.rmtree(out, ignore_errors=True)
    again = LeRobotDataset.create("test/set", dataset.fps, columns, root=out, robot_type="copy")
    values = read(folder)
    for index, episode in enumerate(values["episode_index"]):
        row = {name: values[name][index].reshape(columns[name]["shape"]) for name in columns}
        again.add_frame(row | {"task": str(values["task"][index])})
        if index + 1 == len(values["episode_index"]) or values["episode_index"][index + 1] != episode:
            again.save_episode()
    again.finalize()


def main() -> None:
    """Do what the command line says."""
    if sys.argv[1] == "write":
        cameras = {"front": (24, 32), "wrist": (16, 16)}
        record(HERE / "lerobot_images", features(cameras, "image"), (6, 5, 7))
        record(HERE / "lerobot_video", features({"front": (64, 64)}, "video"), (6, 5))
        for name in ("lerobot_images", "lerobot_video"):
            np.savez_compressed(HERE / name / "frames.npz", **read(HERE / name))
        return
    folder, out = Path(sys.argv[2]), Path(sys.argv[3])
    np.savez_compressed(out.with_suffix(".npz"), **read(folder))
    copy(folder, out)


if __name__ == "__main__":
    main()
