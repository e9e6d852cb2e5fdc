"""RLDS data sets of the real TensorFlow Datasets, as Open X-Embodiment has them, and what it reads in them.

`make golden-rlds` runs it in an environment of its own, which has TensorFlow. It writes two folders: rlds, a
flat state and action in two shards; and rlds_nested, whose action is a dictionary and whose words are inside
the observation. frames.npz beside each has every frame as the library reads it.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

HERE = Path(__file__).parent
LENGTHS = (4, 6, 3)
FEATURES = tfds.features


def picture(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    return random.integers(0, 256, (height, width, 3), np.uint8)


def flat() -> dict:
    """Return a step as BridgeData's and LIBERO's RLDS have it."""
    observation = {
        "image_0": FEATURES.Image(shape=(16, 24, 3), dtype=np.uint8, encoding_format="png"),
        "wrist": FEATURES.Image(shape=(8, 8, 3), dtype=np.uint8, encoding_format="jpeg"),
        "state": FEATURES.Tensor(shape=(7,), dtype=np.float32),
    }
    return {
        "observation": observation,
        "action": FEATURES.Tensor(shape=(7,), dtype=np.float32),
        "language_instruction": FEATURES.Text(),
        "reward": FEATURES.Scalar(dtype=np.float32),
        "is_first": FEATURES.Scalar(dtype=np.bool_),
        "is_last": FEATURES.Scalar(dtype=np.bool_),
        "is_terminal": FEATURES.Scalar(dtype=np.bool_),
    }


def nested() -> dict:
    """Return a step as RT-1's has it."""
    observation = {
        "image": FEATURES.Image(shape=(16, 16, 3), dtype=np.uint8, encoding_format="png"),
        "natural_language_instruction": FEATURES.Text(),
        "natural_language_embedding": FEATURES.Tensor(shape=(8,), dtype=np.float32),
        "gripper_closed": FEATURES.Tensor(shape=(1,), dtype=np.float32),
        "base_pose": FEATURES.Tensor(shape=(3,), dtype=np.float64),
    }
    action = {
        "world_vector": FEATURES.Tensor(shape=(3,), dtype=np.float32),
        "gripper": FEATURES.Tensor(shape=(1,), dtype=np.float32),
        "terminate": FEATURES.Tensor(shape=(3,), dtype=np.int32),
    }
    return {"observation": observation, "action": action, "is_last": FEATURES.Scalar(dtype=np.bool_)}


def drawn(feature: object, random: np.random.Generator, step: int, last: int) -> object:
    """Draw a step's value."""
    if isinstance(feature, dict):
        return {name: drawn(each, random, step, last) for name, each in feature.items()}
    if isinstance(feature, FEATURES.Image):
        return picture(random, *feature.shape[:2])
    if isinstance(feature, FEATURES.Text):
        return f"open drawer {last}"
    if feature.np_dtype == np.bool_:
        return step == last
    values = random.normal(0, 3, feature.shape)
    return values.astype(feature.np_dtype) if feature.shape else feature.np_dtype(step == last)


def episodes(step: dict) -> list[dict]:
    random = np.random.default_rng(1)
    return [
        {
            "steps": [drawn(step, random, each, length - 1) for each in range(length)],
            "episode_metadata": {"file_path": f"episode{index}"},
        }
        for index, length in enumerate(LENGTHS)
    ]


def build(name: str, step: dict, shard: int) -> None:
    """Write a data set, `shard` episodes a file, and what the library reads in it beside it."""
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    features = FEATURES.FeaturesDict(
        {"steps": FEATURES.Dataset(step), "episode_metadata": {"file_path": FEATURES.Text()}}
    )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(out), module_name="golden"
    )
    writer = tfds.core.SequentialWriter(
        tfds.core.DatasetInfo(builder=identity, features=features), max_examples_per_shard=shard
    )
    writer.initialize_splits(["train"])
    writer.add_examples({"train": episodes(step)})
    writer.close_all()
    np.savez_compressed(out / "frames.npz", **read(out))


def read(folder: Path) -> dict[str, np.ndarray]:
    """Return every leaf of every frame, and the episode of each."""
    columns: dict[str, list] = {}
    dataset = tfds.builder_from_directory(str(folder)).as_dataset(split="train")
    for index, episode in enumerate(tfds.as_numpy(dataset)):
        for step in episode["steps"]:
            columns.setdefault("episode", []).append(index)
            for name, value in leaves(step):
                columns.setdefault(name, []).append(value.decode() if isinstance(value, bytes) else value)
    return {name: np.array(values) for name, values in columns.items()}


def leaves(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for name, each in value.items():
        yield from leaves(each, f"{prefix}/{name}".removeprefix("/"))


if __name__ == "__main__":
    build("rlds", flat(), 2)
    build("rlds_nested", nested(), 10)
