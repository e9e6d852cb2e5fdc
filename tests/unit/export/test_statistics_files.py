"""norm_stats.json and dataset_statistics.json, by the formulas of the libraries that write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import openpi, openvla
from export.errors import ExportError
from vla_runtime.actions import normalise, unnormalise
from vla_runtime.spec import ContinuousSpace, Dimension, Statistics, Vector

RANDOM = np.random.default_rng(0)


def dims(count: int) -> tuple[Dimension, ...]:
    return tuple(Dimension(name=f"d{place}", unit="1", low=-100, high=100) for place in range(count))


def vector(count: int) -> Vector:
    return Vector(dimensions=dims(count), normalisation="identity", statistics=Statistics())


def space(count: int) -> ContinuousSpace:
    more: dict[str, Any] = {"horizon": 3, "control_hz": 10.0}
    return ContinuousSpace(dimensions=dims(count), normalisation="identity", statistics=Statistics(), **more)


@pytest.fixture
def norm_stats(tmp_path: Path) -> Path:
    entry = {
        "mean": [1.0, -2.0, 0.5],
        "std": [0.5, 3.0, 0.0],
        "q01": [-1.0, -9.0, 0.5],
        "q99": [2.0, 9.0, 0.5],
    }
    path = tmp_path / "norm_stats.json"
    nulls = entry | {"q01": None, "q99": None}
    path.write_text(json.dumps({"norm_stats": {"state": entry, "actions": entry, "old": nulls}}))
    return path


def openpi_normalise(x: np.ndarray, stats: dict[str, list[float]], rule: str) -> np.ndarray:
    """openpi's `Normalize`, transforms.py: statistics are cut to the width of the values."""
    s = {name: np.array(values)[: x.shape[-1]] for name, values in stats.items()}
    if rule == "mean_std":
        return (x - s["mean"]) / (s["std"] + 1e-6)
    return (x - s["q01"]) / (s["q99"] - s["q01"] + 1e-6) * 2 - 1


def openpi_unnormalise(x: np.ndarray, stats: dict[str, list[float]], rule: str) -> np.ndarray:
    """openpi's `Unnormalize`: what is beyond the statistics stays as it is."""
    s = {name: np.array(values) for name, values in stats.items()}
    known, beyond = x[..., :3], x[..., 3:]
    if rule == "mean_std":
        back = known * (s["std"] + 1e-6) + s["mean"]
    else:
        back = (known + 1) / 2 * (s["q99"] - s["q01"] + 1e-6) + s["q01"]
    return np.concatenate([back, beyond], -1)


@pytest.mark.parametrize("rule", ["mean_std", "quantiles"])
def test_openpi_both_ways_with_its_epsilon(norm_stats: Path, rule: Any) -> None:
    stats = json.loads(norm_stats.read_text())["norm_stats"]["state"]
    state = openpi.normalised(vector(2), norm_stats, "state", rule)
    action = openpi.normalised(space(5), norm_stats, "actions", rule)

    x = RANDOM.normal(size=(7, 2)).astype(np.float32)
    np.testing.assert_allclose(normalise(x, state), openpi_normalise(x, stats, rule), rtol=1e-5, atol=1e-6)
    a = RANDOM.normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_allclose(
        unnormalise(a, action), openpi_unnormalise(a, stats, rule), rtol=1e-5, atol=1e-6
    )
    assert action.passthrough == ("d3", "d4")
    constant = normalise(
        np.array([0, 0, 0.5], np.float32), openpi.normalised(vector(3), norm_stats, "state", rule)
    )
    assert constant[2] == pytest.approx(0.0 if rule == "mean_std" else -1.0)


@pytest.mark.parametrize("rule", ["quantiles", "mean_std", "bounds"])
def test_openvla_with_its_mask(tmp_path: Path, rule: Any) -> None:
    entry = {"mean": [0.1, 0.2, 0.5], "std": [1.0, 2.0, 0.3], "min": [-3, -4, 0], "max": [3, 4, 1]}
    entry |= {"q01": [-1.0, -2.0, 0.0], "q99": [1.5, 2.5, 1.0], "mask": [True, True, False]}
    path = tmp_path / "dataset_statistics.json"
    path.write_text(json.dumps({"bridge": {"action": entry, "num_trajectories": 3}}))

    made = openvla.normalised(space(3), path, rule=rule)

    a = RANDOM.uniform(-1, 1, (4, 3)).astype(np.float32)
    names = {"quantiles": ("q01", "q99"), "bounds": ("min", "max"), "mean_std": ("mean", "std")}[rule]
    low, high = (np.array(entry[name]) for name in names)
    back = a * high + low if rule == "mean_std" else 0.5 * (a + 1) * (high - low) + low
    np.testing.assert_allclose(unnormalise(a, made), np.where(entry["mask"], back, a), rtol=1e-5, atol=1e-6)


def test_octo_calls_its_quantiles_otherwise_and_a_constant_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "dataset_statistics.json"
    path.write_text(json.dumps({"action": {"p01": [-1.0, 0.25], "p99": [1.0, 0.25]}}))

    made = openvla.normalised(space(2), path)

    np.testing.assert_array_equal(unnormalise(np.array([[1, 5]], np.float32), made), [[1, 0.25]])


def test_what_is_missing_is_named(norm_stats: Path, tmp_path: Path) -> None:
    two = tmp_path / "two.json"
    two.write_text(json.dumps({name: {"action": {"q01": [0.0], "q99": [1.0]}} for name in ("a", "b")}))
    with pytest.raises(ExportError, match=r"no action of dataset None; it has: a, b"):
        openvla.normalised(space(1), two)
    with pytest.raises(ExportError, match=r"has 1 values for the 2 dimensions: d0, d1"):
        openvla.normalised(space(2), two, "a")
    with pytest.raises(ExportError, match=r"has no mean; it has: q01, q99"):
        openvla.normalised(space(1), two, "a", rule="mean_std")
    with pytest.raises(ExportError, match=r"has no q01; it has"):
        openpi.normalised(space(1), norm_stats, "old", "quantiles")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ExportError, match=r"no statistics of 'action'; it has: state, actions, old"):
        openpi.normalised(space(1), norm_stats, "action")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ExportError, match=r"none\.json is missing"):
        openpi.normalised(space(1), tmp_path / "none.json", "state")
