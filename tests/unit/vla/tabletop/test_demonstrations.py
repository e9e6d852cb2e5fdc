"""Collecting, loading and summarising demonstrations, on the real simulator."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla.tabletop.collection import EPISODE_FRAMES, FIRST_SCENE, Collection, collect, demonstrate
from vla.tabletop.commands import GOALS
from vla.tabletop.demonstrations import DatasetError, Demonstrations
from vla.tabletop.expert import expert_action
from vla.tabletop.labels import points
from vla.tabletop.simulator import Tabletop
from vla.training.statistics import Statistics, StatisticsError, Summary

EPISODES = 5


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    out = tmp_path_factory.mktemp("data") / "tabletop"
    return Collection(out, EPISODES, seed=1, horizon=3, image_size=32, varied=0, workers=2)


@pytest.fixture(scope="module")
def dataset(config: Collection) -> Demonstrations:
    return collect(config)


def test_looks_change_pictures_and_boxes_alone() -> None:
    plain, varied = (demonstrate(3, 1, horizon=1, image_size=32, varied=share) for share in (0, 1))
    for name in ("state", "actions", "blocks", "goal"):
        assert np.array_equal(getattr(plain, name), getattr(varied, name))
    assert (np.abs(plain.images.astype(int) - varied.images).mean((1, 2, 3)) > 2).all()
    assert (np.abs(plain.boxes - varied.boxes).max((1, 2)) > 0).all()
    assert (np.abs(plain.hand - varied.hand).max(1) > 0).all()
    np.testing.assert_allclose(plain.hand, points(plain.state[:, :3]), atol=1e-6)


@pytest.fixture
def copy(dataset: Demonstrations, config: Collection, tmp_path: Path) -> Path:
    """A data set to spoil."""
    return shutil.copytree(config.out, tmp_path / "copy")


def test_the_arrays_are_what_the_description_says(dataset: Demonstrations, config: Collection) -> None:
    n = len(dataset)
    assert dataset.images.shape == (n, 32, 32, 3)
    assert dataset.actions.shape == (n, len(GOALS), 3, 4)
    assert dataset.description.episodes == EPISODES
    assert dataset.description.success_rate == 1
    assert sorted(path.name for path in config.out.parent.iterdir()) == ["tabletop"]
    starts = np.flatnonzero(np.diff(dataset.episode, prepend=-1))
    assert dataset.episode[starts].tolist() == list(range(EPISODES))
    assert dataset.goal[starts].tolist() == list(range(EPISODES))


def test_the_first_frame_is_the_scene_of_its_seed(dataset: Demonstrations) -> None:
    env = Tabletop()
    env.reset(FIRST_SCENE + 1_000_000, GOALS[0])
    assert np.array_equal(dataset.state[0], env.state())
    assert np.array_equal(dataset.blocks[0], env.blocks())
    assert np.array_equal(dataset.images[0], env.render(32))
    for index, goal in enumerate(GOALS):
        assert np.array_equal(dataset.actions[0, index, 0], expert_action(env, goal))
    env.close()


def test_the_same_seed_gives_the_same_episode_in_any_process(
    config: Collection, dataset: Demonstrations
) -> None:
    here = demonstrate(3, seed=1, horizon=3, image_size=32, varied=config.varied, early=config.early)
    there = dataset.episode == 3
    assert np.array_equal(here.images, dataset.images[there])
    assert np.array_equal(here.actions, dataset.actions[there])


def test_noise_moves_the_robot_but_not_the_labels() -> None:
    quiet, noisy = (demonstrate(index, seed=1, horizon=1, image_size=32) for index in (0, 24))
    for episode, follows in ((quiet, True), (noisy, False)):
        moved = np.diff(episode.state[:, 0])
        labelled = episode.actions[np.arange(len(moved)), episode.goal[:-1], 0, 0]
        assert np.allclose(moved, labelled, atol=4e-3) is follows


def test_a_reached_goal_is_followed_by_another_and_its_end_is_seen() -> None:
    pushes = 0
    for index in range(len(GOALS)):
        episode = demonstrate(index, seed=1, horizon=1, image_size=32)
        goals = [GOALS[goal] for goal in episode.goal]
        assert goals[0] == GOALS[index]
        assert len(goals) == EPISODE_FRAMES
        for frame, (here, after) in enumerate(itertools.pairwise(goals), 1):
            if here != after:
                assert (episode.actions[frame, GOALS.index(here), 0, :3] == 0).all()
                pushes += here.task == "push"
    assert pushes >= 3


def test_fingers_lag_behind_the_labels() -> None:
    """Fingers are seen open under a label that closes them, for longer than one step."""
    episodes = [demonstrate(index, seed=1, horizon=1, image_size=32) for index in range(4, 8)]
    lagging = 0
    for episode in episodes:
        closing = episode.actions[np.arange(len(episode.goal)), episode.goal, 0, 3] > 0
        lagging = max(lagging, int((closing & (episode.state[:, 3] > 0.9)).sum()))
    assert lagging >= 2
    assert np.abs(episodes[0].actions[..., :3]).max() <= np.float32(0.03)


def closed_too_early(early: float) -> int:
    """Count the frames of reaching in which fingers, which never should close, are seen closed."""
    found = 0
    for index in range(4):
        episode = demonstrate(index, seed=1, horizon=1, image_size=32, early=early)
        reaching = episode.goal == index
        assert (episode.actions[reaching, index, 0, 3] < 0).all()
        found += int((reaching & (episode.state[:, 3] < 0.7)).sum())
    return found


def test_fingers_close_too_early_where_they_are_told_to() -> None:
    assert closed_too_early(1) >= closed_too_early(0) + 3


def test_an_existing_folder_is_kept(dataset: Demonstrations, config: Collection) -> None:
    with pytest.raises(FileExistsError) as refused:
        collect(config)
    assert str(refused.value) == f"{config.out} exists; choose another --out or pass --overwrite"


def test_the_command_line_refuses_and_overwrites(copy: Path) -> None:
    command = [sys.executable, "-m", "vla.tabletop", "--out", str(copy), "--episodes", "1", "--horizon", "1"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr == f"error: {copy} exists; choose another --out or pass --overwrite\n"
    subprocess.run([*command, "--overwrite", "--workers", "1"], capture_output=True, check=True)
    assert Demonstrations.load(copy).description.episodes == 1


@pytest.mark.parametrize("name", ["episodes", "horizon", "image_size", "workers"])
def test_options_out_of_range_are_refused(config: Collection, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be between 1 and [0-9]+, got 0$"):
        replace(config, **{name: 0})


def test_a_folder_without_a_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as refused:
        Demonstrations.load(tmp_path)
    path = tmp_path / "dataset.json"
    assert str(refused.value) == f"{path} is missing: not a data set; make one with python -m vla.tabletop"


def test_another_format_version_is_refused(copy: Path) -> None:
    path = copy / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 7}))
    with pytest.raises(DatasetError) as refused:
        Demonstrations.load(copy)
    assert str(refused.value) == f"{path}: format_version is 7, expected 3"


def test_a_malformed_description_is_refused(copy: Path) -> None:
    path = copy / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"horizon": "three"}))
    with pytest.raises(DatasetError) as refused:
        Demonstrations.load(copy)
    assert str(refused.value) == f"{path}: Expected `int`, got `str` - at `$.horizon`"


def test_a_missing_array_is_refused(copy: Path) -> None:
    (copy / "goal.npy").unlink()
    with pytest.raises(DatasetError) as refused:
        Demonstrations.load(copy)
    assert str(refused.value) == f"{copy / 'goal.npy'} is missing"


def test_a_truncated_array_is_refused(copy: Path) -> None:
    path = copy / "images.npy"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DatasetError, match=f"^{re.escape(str(path))} is not a readable array: "):
        Demonstrations.load(copy)


def test_an_array_of_another_shape_or_dtype_is_refused(copy: Path, dataset: Demonstrations) -> None:
    n = len(dataset)
    np.save(copy / "state.npy", np.zeros((n, 5)))
    with pytest.raises(DatasetError) as refused:
        Demonstrations.load(copy)
    expected = f"found float64 [{n}, 5], dataset.json says float32 [{n}, 4]"
    assert str(refused.value) == f"{copy / 'state.npy'}: {expected}"


def test_statistics_round_trip(dataset: Demonstrations, tmp_path: Path) -> None:
    statistics = Statistics.compute(dataset)
    assert statistics.action.names == ("delta_x", "delta_y", "delta_z", "gripper")
    assert statistics.state.mean == pytest.approx(dataset.state.mean(0, dtype=np.float64).tolist())
    assert statistics.action.max == pytest.approx((0.03, 0.03, 0.03, 1))
    for summary in (statistics.state, statistics.action):
        order = np.array([summary.min, summary.q01, summary.q99, summary.max])
        assert (np.diff(order, axis=0) >= 0).all()
    statistics.save(tmp_path / "statistics.json")
    assert Statistics.load(tmp_path / "statistics.json") == statistics


def test_a_constant_dimension_is_named() -> None:
    with pytest.raises(StatisticsError) as refused:
        Summary.of(np.array([[0.0, 2.0], [1.0, 2.0]]), ("delta_x", "gripper"))
    message = "dimension 'gripper' is constant (q01 2, q99 2): it cannot be normalised"
    assert str(refused.value) == message


def test_unreadable_statistics_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    with pytest.raises(StatisticsError, match=r"statistics\.json is missing$"):
        Statistics.load(path)
    path.write_text("{}")
    with pytest.raises(StatisticsError, match="missing required field `state`"):
        Statistics.load(path)


def test_statistics_edited_to_zero_width_are_refused(dataset: Demonstrations, tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    Statistics.compute(dataset).save(path)
    content = json.loads(path.read_text())
    content["state"]["q99"][2] = content["state"]["q01"][2]
    path.write_text(json.dumps(content))
    with pytest.raises(StatisticsError, match="dimension 'hand_z' is constant"):
        Statistics.load(path)
