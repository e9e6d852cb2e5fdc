"""The table of variants: what is compared, who dominates whom, and how a pruned model is tuned."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.compress.measuring import Measured, Result, cosine
from bench.compress.report import dominating, plot, table
from bench.compress.scenes import observed, rows
from bench.compress.tuning import distance, smaller, tune
from bench.policies import of_architecture
from export.prune import WEIGHTED, Pruning
from export.source import Observation, Source
from vla.evaluation.report import Rate

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def source() -> Source:
    return of_architecture("command_attention")


@pytest.fixture(scope="module")
def scenes(source: Source) -> list[Observation]:
    return observed(source, 24, 2_000_000, "train")


def result(variant: str, ms: float, *, size: int = 100, successes: int = 40) -> Result:
    measured = Measured(
        variant=variant,
        size_bytes=size,
        peak_mib=300.0,
        cosine=0.9987,
        error={"mm": 0.25, "1": 0.01},
        same_holds=Rate(39, 40),
        success=Rate(successes, 40),
    )
    return Result(measured, {1: ms, 8: 3 * ms, 32: 9 * ms}, {1: ms / 2, 8: ms / 2, 32: ms / 2}, 900.0)


def test_cosine_of_chunks() -> None:
    one = np.array([[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    other = np.array([[[1.0, 1.0]], [[0.0, 0.0]], [[0.0, 2.0]]])
    assert cosine(one, other) == pytest.approx((2**-0.5 + 1 + 0) / 3)


def test_variant_that_another_beats_in_everything_is_dominated() -> None:
    base, fast, wrong = result("base", 2.0), result("fast", 1.0), result("wrong", 0.5, successes=30)
    large = result("large", 2.02, size=101)
    everything = [base, fast, wrong, large]
    assert dominating(base, everything) == "fast"
    assert dominating(fast, everything) == ""
    assert dominating(wrong, everything) == ""  # the fastest
    assert dominating(base, [base, large]) == ""  # as good, within what counts as alike
    assert dominating(result("smaller", 2.0, size=50), everything) == ""


def test_table_shows_units_intervals_and_who_dominates() -> None:
    (_, row, _) = table([result("base", 2.0), result("fast", 1.0)]).cells
    assert row == [
        *("base", "0.00", "300", "2.0 (x 1.00)", "6.0 (x 1.00)", "18.0 (x 1.00)", "900", "0.9987"),
        *("0.250 mm, 0.010 gripper", "98", "100 [91, 100]", "fast"),
    ]


def test_plot_has_a_row_a_variant(tmp_path: Path) -> None:
    plot({"one": [result("base", 2.0), result("fast", 1.0)]}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_scenes_depend_on_their_seed_alone(source: Source, scenes: list[Observation]) -> None:
    again, others = observed(source, 3, 2_000_000, "train"), observed(source, 3, 3_000_000, "train")
    for one, same, other in zip(scenes, again, others, strict=False):
        assert np.array_equal(one.images["front"], same.images["front"])
        assert (one.command, one.state) == (same.command, same.state)
        assert not np.array_equal(one.images["front"], other.images["front"])
    assert len({one.command for one in scenes}) > 12
    asked = rows(source, scenes)
    assert [row["seed"] for row in asked] == list(range(24))


def test_tuning_comes_nearer_and_leaves_zeros_alone(source: Source, scenes: list[Observation]) -> None:
    sparse = smaller(source, Pruning(prune_weights=0.5), scenes, 1)
    weights = [module.weight for module in sparse.model.modules() if isinstance(module, WEIGHTED)]
    zeros = [weight == 0 for weight in weights]

    losses = tune(sparse, source, scenes, 6)

    assert np.mean(losses[-2:]) < 0.8 * np.mean(losses[:2])
    assert sparse.provenance["pruned"] == {"prune_weights": 0.5, "prune_units": 0.0}
    assert sparse.provenance["tuned_steps"] == 1
    assert sum(map(torch.count_nonzero, zeros)) == pytest.approx(0.5 * sum(map(torch.numel, zeros)), abs=2)
    assert all((weight[zero] == 0).all() for weight, zero in zip(weights, zeros, strict=True))


def test_distance_counts_the_chunk_ten_times() -> None:
    wanted = {"actions": torch.tensor([0.0, 2.0]), "confidence": torch.tensor([0.0, 2.0])}
    found = {"actions": torch.tensor([1.0, 2.0]), "confidence": torch.tensor([0.0, 2.0])}
    assert distance(found, wanted).item() == pytest.approx(10 * 0.5 / 2.001)
    swapped = {"actions": wanted["actions"], "confidence": found["actions"]}
    assert distance(swapped, wanted).item() == pytest.approx(0.5 / 2.001)


@pytest.mark.slow
def test_one_command_makes_measures_and_goes_on(tmp_path: Path) -> None:
    options = ["--only", "onnx, int8_static", "--episodes", "1", "--compared", "8", "--tuned", "32"]
    options += ["--steps", "2", "--rounds", "1", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "bench", "compress", "checkpoints/grounded", *options]
    names = ["torchscript, float32", "onnx, int8_static", "onnx, int8_static, fewer units"]
    times = []
    for _ in range(2):
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        written = json.loads((tmp_path / "compression.json").read_bytes())["measured"]["grounded"]
        assert [one["measured"]["variant"] for one in written] == names
        assert all(one["measured"]["success"]["episodes"] == 1 for one in written)
        assert written[0]["measured"]["cosine"] == written[0]["ratio"]["1"] == 1.0
        assert written[1]["measured"]["size_bytes"] < 0.5 * written[0]["measured"]["size_bytes"]
        times.append((tmp_path / "grounded" / "onnx-int8_static.mar").stat().st_mtime_ns)
    assert times[0] == times[1]  # the second run made nothing anew
    assert (tmp_path / "compression.png").stat().st_size > 10_000
