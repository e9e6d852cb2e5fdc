"""Training on recorded data: a robot with two cameras that LeRobot recorded, and mixtures of robots."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from making import eager_actions
from PIL import Image
from safetensors.torch import load_file

from archive.read import unpack
from export.export import Options, export
from vla import checkpoint, provenance
from vla.data.episodes import About, Episode
from vla.data.lerobot.reader import Dataset
from vla.data.lerobot.writer import write
from vla.data.mixture import Mixture, load
from vla.data.recipe import read_recipe
from vla.models import build
from vla.training import recorded
from vla.training.imitation import train
from vla.training.recorded import RecordedBatches
from vla.training.settings import Recorded, Settings
from vla.training.setup import model_values
from vla_runtime.actions import unnormalise
from vla_runtime.errors import SpecError
from vla_runtime.observation import Row
from vla_runtime.policy import Answer, Policy
from vla_runtime.spec import ContinuousSpace

GOLDEN = Path(__file__).parents[3] / "golden" / "lerobot_images"
ARM = About("arm", 10.0, {"front": (24, 24)}, ("x",), ("dx", "gripper.pos"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        architecture="early_fusion",
        preset="tiny",
        data=GOLDEN,
        out=tmp_path_factory.mktemp("run"),
        steps=6,
        batch=4,
        validate_every=2,
        validation_share=0.3,
        threads=1,
        recorded=Recorded(horizon=3, image_size=32),
    )


@pytest.fixture(scope="module")
def run(settings: Settings) -> Path:
    train(settings)
    return settings.out


@pytest.fixture(scope="module")
def mixture_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two robots that share a camera and the gripper alone."""
    folder = tmp_path_factory.mktemp("mixture")
    random = np.random.default_rng(0)
    episodes = []
    for index, length in enumerate((5, 6, 4)):
        pictures = [Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8)) for _ in range(length)]
        state, actions = (random.normal(size=(length, width)).astype(np.float32) for width in (1, 2))
        said = ("turn left",) * length
        episodes.append(Episode({"front": pictures}, state, actions, said, success=index != 1))
    write(ARM, episodes, folder / "arm")
    datasets = [{"path": str(GOLDEN), "weight": 2}, {"path": "arm", "mirror": {"action": ["dx"]}}]
    (folder / "mixture.json").write_text(json.dumps({"datasets": datasets}))
    return folder / "mixture.json"


def batches(settings: Settings) -> RecordedBatches:
    recipe, options = read_recipe(settings.data), settings.recorded
    mixture = Mixture(recipe, load(recipe, options.image_size), horizon=3, seed=0, held_out=0.3)
    return RecordedBatches(mixture, recorded.describe(settings, mixture, model_values(settings)), 0)


def test_names_bounds_and_statistics_are_the_data_set_s(run: Path) -> None:
    config, _ = checkpoint.load(run)
    given = Dataset(GOLDEN).statistics["action"]
    assert isinstance(config.action, ContinuousSpace)

    assert [(each.name, each.width, each.resize) for each in config.cameras] == [
        ("front", 32, "pad"),
        ("wrist", 32, "pad"),
    ]
    assert config.action.names == ("shoulder_pan.pos", "shoulder_lift.pos", "gripper.pos")
    assert config.action.statistics.mean == tuple(given["mean"])
    assert config.action.statistics.std == tuple(given["std"])
    assert [each.low for each in config.action.dimensions] == given["min"].tolist()
    assert config.action.control_hz == 10
    assert config.training["recorded"]["horizon"] == 3


def test_the_checkpoint_exports_and_answers_as_it_was_trained(run: Path, tmp_path: Path) -> None:
    export(Options(str(run), output=tmp_path / "vla.mar", buckets=(1, 2)))
    policy = Policy.load(unpack(tmp_path / "vla.mar", tmp_path / "unpacked"))
    _, model = checkpoint.load(run)
    episode = Dataset(GOLDEN).episode(1)
    row: Row = {"command": b"pick the cup", "state": json.dumps(episode.state[0].tolist()).encode()}
    for camera in ("front", "wrist"):
        episode.images[camera][0].save(tmp_path / f"{camera}.png")
        row[f"image.{camera}"] = (tmp_path / f"{camera}.png").read_bytes()

    answer = policy.infer([row])[0]
    assert isinstance(answer, Answer)
    np.testing.assert_allclose(answer.chunk.actions, eager_actions(policy, model, row), atol=1e-4)


def test_training_sees_what_serving_sees(run: Path, settings: Settings) -> None:
    """The held-out example is a frame of the data set, and the batch's numbers are its numbers."""
    example = json.loads((run / checkpoint.EXAMPLE).read_text())
    drawn = batches(settings)
    states = np.concatenate([each.state for each in Dataset(GOLDEN)])

    assert any(np.array_equal(np.float32(example["state"]), state) for state in states)
    batch = drawn.train(0, 5, 8)
    actions = unnormalise(batch.actions[:, 0].numpy(), drawn.space)
    every = np.concatenate([each.actions for each in Dataset(GOLDEN)])
    assert all(abs(every - action).max(1).min() < 1e-4 for action in actions)
    assert batch.images.shape == (5, 2, 3, 32, 32)


def test_a_resumed_run_ends_with_the_same_weights(settings: Settings, run: Path, tmp_path: Path) -> None:
    stopped = replace(settings, out=tmp_path)
    train(stopped, stop_after=2)
    train(replace(stopped, resume=True))
    other = load_file(tmp_path / checkpoint.WEIGHTS)

    for name, value in load_file(run / checkpoint.WEIGHTS).items():
        assert torch.equal(value, other[name]), name


def test_a_mixture_trains_and_what_a_robot_lacks_is_not_learned_from(
    settings: Settings, mixture_file: Path, tmp_path: Path
) -> None:
    mixed = replace(settings, data=mixture_file, out=tmp_path, steps=2)
    mixed = replace(mixed, recorded=Recorded(horizon=3, image_size=32, failed=0, mirror=0.5))
    config = train(mixed)

    assert config.action.names == ("shoulder_pan.pos", "shoulder_lift.pos", "gripper.pos", "dx")
    drawn = batches(mixed)
    model = build(config.architecture, config.model, config.sizes())
    batch = drawn.train(0, 16, 1)
    assert batch.valid is not None
    assert 0 < batch.valid[:, 0, 3].sum() < 16
    loss = model.loss(batch)["actions"]
    other = torch.where(batch.valid, batch.actions, 99.0)
    assert torch.equal(loss, model.loss(batch._replace(actions=other))["actions"])
    assert not torch.equal(loss, model.loss(batch._replace(actions=other, valid=None))["actions"])
    assert (batch.images[~batch.valid[:, 0, 0]][:, 1] == 0).all()


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("grounded", "grounded learns from skill, target, objects"),
        ("flow", "some data sets lack dimensions of the mixture's action"),
    ],
)
def test_an_architecture_that_can_t_learn_from_it_is_refused(
    settings: Settings, mixture_file: Path, architecture: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        train(replace(settings, architecture=architecture, data=mixture_file))


@pytest.mark.parametrize("architecture", ["flow", "rt2", "diffusion", "realtime", "unified"])
def test_other_heads_train_on_it_too(settings: Settings, tmp_path: Path, architecture: str) -> None:
    train(replace(settings, architecture=architecture, out=tmp_path, steps=1))

    assert checkpoint.load(tmp_path)[0].architecture == architecture


def test_a_command_that_is_too_long_is_refused(settings: Settings) -> None:
    with pytest.raises(SpecError, match="give a larger --context-length"):
        train(replace(settings, context_length=3))


def test_the_command_line_names_what_is_not_usual(settings: Settings) -> None:
    assert settings.command_line.endswith("--threads 1 --recorded.horizon 3 --recorded.image-size 32")


@pytest.mark.parametrize("changes", [{"horizon": 0}, {"image_size": 0}, {"failed": 1.5}, {"mirror": -0.1}])
def test_options_that_make_no_sense_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match=f"recorded.{next(iter(changes))} must be"):
        Recorded(**changes)


def test_provenance_counts_and_digests_every_file(run: Path, tmp_path: Path) -> None:
    about = msgspec.json.decode((run / checkpoint.PROVENANCE).read_bytes())
    other = shutil.copytree(GOLDEN, tmp_path / "other")
    (other / "meta/tasks.parquet").write_bytes(b"")

    assert sum(about["frames"]) == 18
    assert about["dataset_sha256"] == provenance.digest(GOLDEN) != provenance.digest(other)
