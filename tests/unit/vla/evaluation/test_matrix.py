"""The matrix of what policies understand: runs are resumed, added up, drawn, and held against each other."""

import subprocess
import sys
from pathlib import Path

import pytest

from vla.evaluation.matrix import Matrix, pooled, total, zero_shot
from vla.evaluation.report import Rate
from vla.evaluation.understanding import Outcome, Run

ROOT = Path(__file__).parents[4]


def run(name: str, seed: int, **successes: int) -> Run:
    """Make a run of ten episodes a cell; a cell's name has spaces for underscores."""
    outcomes = {
        cell.replace("_", " "): Outcome(cell, good=(True,) * count + (False,) * (10 - count))
        for cell, count in successes.items()
    }
    return Run(name, "digest", 10, seed, outcomes)


def test_runs_of_one_name_are_added_up() -> None:
    runs = [run("one", 1, stop=9), run("one", 2, stop=10), run("other", 1, stop=0)]
    found = pooled(runs)
    assert found == {"one": {"stop": [Rate(9, 10), Rate(10, 10)]}, "other": {"stop": [Rate(0, 10)]}}
    assert total(found["one"]["stop"]) == Rate(19, 20)


def test_zero_shot_is_unseen_over_seen() -> None:
    seen = {"seen_phrasings": 10, "paraphrases": 6, "landmark": 8}
    lines = zero_shot(pooled([run("one", 1, **seen), run("other", 1, seen_phrasings=10)])).splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "phrasings",
        "0.70 [0.48, 1.02]",
        "-",
    ]
    assert len(lines) == 3  # no cell of any other kind was run


def test_run_is_written_whole_and_resumed_where_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run("one", 1, stop=9).save(path)
    assert Run("one", "digest", 10, 1).resumed(path) == run("one", 1, stop=9)
    for other in (Run("one", "another", 10, 1), Run("one", "digest", 11, 1), Run("one", "digest", 10, 2)):
        assert other.resumed(path).outcomes == {}
    assert Run("one", "digest", 10, 1).resumed(tmp_path / "missing.json").outcomes == {}
    assert [each.name for each in tmp_path.iterdir()] == ["run.json"]
    path.write_text("[]")
    assert Run("one", "digest", 10, 1).resumed(path).outcomes == {}
    with pytest.raises(ValueError, match=r"run.json is no run of vla.evaluation.language: "):
        Run.load(path)


def test_one_command_draws(tmp_path: Path) -> None:
    for seed in (1, 2):
        run("one", seed, seen_phrasings=8 + seed, warm_light=5, stop=10).save(tmp_path / f"{seed}.json")
    command = [
        sys.executable,
        "-m",
        "vla.evaluation.matrix",
        "1.json",
        "2.json",
        "--picture",
        "out/matrix.png",
    ]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'handlers'}:{ROOT / 'client'}"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split("|")[2].strip() == "one"
    assert (tmp_path / "out" / "matrix.png").stat().st_size > 5_000


def test_no_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^runs must name at least one JSON file$"):
        Matrix(())
