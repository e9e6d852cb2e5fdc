"""BridgeData V2's and RLBench's folders, small, and what the authors' own code reads in them.

    make_raw.py BRIDGE RLBENCH

BRIDGE is a checkout of rail-berkeley/bridge_data_v2, RLBENCH one of stepjam/RLBench; TensorFlow is needed.
The trajectories are drawn and laid out as the recorders do it. BridgeData's are read by its own conversion to
NumPy; RLBench's observations are objects of its own classes, which need no simulator.
"""

import importlib.util
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
DATES = ("2021-07-01_10-00-00", "2022-05-04_12-30-00")


def module(name: str, path: Path) -> ModuleType:
    """Load one file of a checkout as the module that pickles know it by."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def pictures(
    folder: Path, pattern: str, count: int, random: np.random.Generator, size: tuple[int, int]
) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (3, 4, 3), np.uint8))
        coarse.resize(size[::-1], Image.Resampling.BILINEAR).save(folder / pattern.format(index))


def dump(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value))


def bridge(reference: ModuleType) -> None:
    """Write two dated folders: of the time of the late pictures, and after it."""
    out, random, read = HERE / "bridge", np.random.default_rng(0), {}
    shutil.rmtree(out, ignore_errors=True)
    for date in DATES:
        for number, length in enumerate((5, 4)):
            folder = out / "kitchen" / "drawer" / "00" / date / "raw" / "traj_group0" / f"traj{number}"
            pictures(folder / "images0", "im_{}.jpg", length, random, (24, 32))
            pictures(folder / "images1", "im_{}.jpg", length, random, (24, 32))
            pictures(folder / "depth_images0", "im_{}.png", length, random, (24, 32))
            states = random.normal(size=(length, 7))
            dump(folder / "obs_dict.pkl", {"full_state": states, "time_stamp": np.arange(length) / 5.0})
            actions = [{"actions": random.normal(size=7), "policy_type": "vr"} for _ in range(length - 1)]
            dump(folder / "policy_out.pkl", actions if number else [each["actions"] for each in actions])
            dump(folder / "agent_data.pkl", {"traj_ok": True})
            if number == 0:
                (folder / "lang.txt").write_text("open the drawer\nconfidence: 1\n")
        reference.random.shuffle = lambda values: values.sort()
        reference.FLAGS = type("Flags", (), {"im_size": 32})
        trajectories, *_ = reference.process_dc(
            str(out / "kitchen" / "drawer" / "00" / date), train_ratio=1.0
        )
        for number, each in enumerate(trajectories):
            observations = each["observations"]
            key = f"{date}/{number}"
            read[f"{key}/state"] = np.stack([one["state"] for one in observations])
            read[f"{key}/images1"] = np.stack([one["images1"] for one in observations])
            read[f"{key}/actions"] = np.stack(each["actions"])
            read[f"{key}/language"] = np.array(each["language"])
    np.savez_compressed(out / "frames.npz", **read)


def rlbench(checkout: Path) -> None:
    """Write two variations of a task, one with its sentences in the episode."""
    out, random, read = HERE / "rlbench", np.random.default_rng(1), {}
    shutil.rmtree(out, ignore_errors=True)
    observation = module(
        "rlbench.backend.observation", checkout / "rlbench/backend/observation.py"
    ).Observation
    demo = module("rlbench.demo", checkout / "rlbench/demo.py").Demo
    for variation, lengths in enumerate(((4, 11), (3,))):
        root = out / "close_jar" / f"variation{variation}"
        for number, length in enumerate(lengths):
            folder = root / "episodes" / f"episode{number}"
            for camera in ("front", "wrist"):
                pictures(folder / f"{camera}_rgb", "{}.png", length, random, (16, 16))
                pictures(folder / f"{camera}_depth", "{}.png", length, random, (16, 16))
            steps = [drawn(observation, random) for _ in range(length)]
            dump(folder / "low_dim_obs.pkl", demo(steps, random_seed=np.random.RandomState(0).get_state()))
            read[f"{variation}/{number}"] = np.stack(
                [
                    np.concatenate([each.joint_positions, each.gripper_pose, [each.gripper_open]])
                    for each in steps
                ]
            )
        place = root if variation == 0 else root / "episodes" / "episode0"
        dump(
            place / "variation_descriptions.pkl",
            [f"close the jar {variation}", f"put the lid on {variation}"],
        )
    np.savez_compressed(out / "frames.npz", **read)


def drawn(observation: type, random: np.random.Generator) -> object:
    """Draw an observation as it is pickled: pictures are None, they are stored beside it."""
    names = observation.__init__.__code__.co_varnames[1 : observation.__init__.__code__.co_argcount]
    values = dict.fromkeys(names) | {
        "joint_velocities": random.normal(size=7),
        "joint_positions": random.normal(size=7),
        "joint_forces": random.normal(size=7),
        "gripper_open": float(random.integers(2)),
        "gripper_pose": random.normal(size=7),
        "gripper_matrix": random.normal(size=(4, 4)),
        "gripper_joint_positions": random.normal(size=2),
        "gripper_touch_forces": random.normal(size=6),
        "task_low_dim_state": random.normal(size=14),
        "misc": {"front_camera_near": 0.01, "front_camera_extrinsics": np.eye(4), "variation_index": 0},
    }
    return observation(**values)


if __name__ == "__main__":
    checkouts = [Path(argument) for argument in sys.argv[1:3]]
    bridge(module("bridge_reference", checkouts[0] / "data_processing/bridgedata_raw_to_numpy.py"))
    rlbench(checkouts[1])
