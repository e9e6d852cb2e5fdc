"""The comparison of architectures: one real run of the smallest size, and what its report says."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bench.compare.comparison import RESULT, Comparison, ComparisonFailed, compare, kept
from bench.compare.probes import Probe
from bench.compare.report import Result, markdown, write
from vla import checkpoint
from vla.evaluation.report import Rate
from vla.tabletop.collection import Collection, collect

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handful of demonstrations; all 12 goals are pursued in a dozen episodes."""
    folder = tmp_path_factory.mktemp("data") / "tabletop"
    collect(Collection(out=folder, episodes=12, horizon=4, image_size=32, workers=1))
    return folder


@pytest.fixture(scope="module")
def compared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a comparison of one, by the command that users run, and what that printed."""
    out = tmp_path_factory.mktemp("compared")
    options = "--architectures command_attention --preset tiny --minutes 0.02 --episodes 1 --seeds 3"
    command = [sys.executable, "-m", "bench", "compare", "--data", data, "--out", out, *options.split()]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return out, run.stdout


def test_one_command_compares(compared: tuple[Path, str]) -> None:
    out, said = compared
    (written,) = json.loads((out / "comparison.json").read_bytes())
    assert said.strip() == (out / "comparison.md").read_text().strip()
    assert (out / "comparison.png").stat().st_size > 10_000
    folder = out / "command_attention" / "seed3"
    config, model = checkpoint.load(folder / "checkpoint")
    assert (written["seed"], config.training["seed"]) == (3, 3)
    assert written["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert written["steps"] >= 1
    assert written["train_s"] >= 60 * config.training["minutes"] == 1.2
    assert "--minutes 0.02 " in written["command_line"]
    assert "--excluded-goals 'lift blue' 'push yellow'" in written["command_line"]
    assert written["archive_bytes"] == (folder / "vla.mar").stat().st_size
    assert sorted(written["errors"]) == ["blank", "excluded", "held_out", "shuffled"]
    assert all(len(error) == len(written["units"]) == 4 for error in written["errors"].values())
    assert {name: rate["episodes"] for name, rate in written["success"].items()} == dict.fromkeys(
        ("held_out", "seen", "shuffled", "blank", "excluded"), 1
    )
    assert sorted(written["latency_ms"]) == ["1", "8"]
    assert 100 < written["peak_mib"] < 4000
    assert written["privileged"] == []
    assert "validation error" in (folder / "log.txt").read_text()


def test_what_is_trained_and_evaluated_is_only_measured_again(data: Path, compared: tuple[Path, str]) -> None:
    out, _ = compared
    folder = out / "command_attention" / "seed3"
    trained = (folder / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    (folder / RESULT).unlink()

    [again] = compare(Comparison(("command_attention",), "tiny", data, out, 0.02, episodes=1, seeds=(3,)))

    assert again.success["held_out"].episodes == 1
    assert (folder / "checkpoint" / "model.safetensors").stat().st_mtime_ns == trained


def result(
    name: str = "clip", seed: int = 0, *, success: int = 9, excluded: bool = True, **changes: object
) -> Result:
    rates = {
        "held_out": Rate(success, 10),
        "seen": Rate(10, 10),
        "shuffled": Rate(1, 10),
        "blank": Rate(0, 10),
    }
    errors: dict[Probe, tuple[float, ...]] = {
        "held_out": (0.001, 0.003, 0.2),
        "shuffled": (0.004, 0.006, 0.3),
        "blank": (0.002, 0.002, 0.9),
    }
    if excluded:
        errors["excluded"] = (0.002, 0.002, 0.1)
    made = Result(
        architecture=name,
        seed=seed,
        settings=Comparison(minutes=6.0).plain(),
        command_line="python -m vla.training",
        parameters=3_890_000,
        steps=1000,
        train_s=360.0,
        archive_bytes=7_800_000,
        units=("m", "m", "1"),
        errors=errors,
        success=rates | ({"excluded": Rate(5, 10)} if excluded else {}),
        latency_ms={1: 9.26, 8: 40.0},
        peak_mib=340.4,
        privileged=("target", "boxes") if name == "clip" else (),
    )
    return msgspec.structs.replace(made, **changes)


def test_tables_say_what_was_measured() -> None:
    seeds = [result(), result(seed=1, success=5, steps=900, train_s=361.0, latency_ms={1: 7.26, 8: 42.0})]
    lines = markdown([*seeds, result("rt2", success=2, excluded=False)]).splitlines()

    assert lines[0].startswith(
        "6 minutes of training on one core each, batches of 32 frames with 8 commands, preset default, "
        "seeds 0, 1. Architectures with a * learn from privileged labels, "
    )
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")
    ]
    assert cells[0] == [
        *("`clip *`", "3.89", "7.8", "340", "8.3 / 41.0", "360 to 361", "900 to 1000", "target, boxes")
    ]
    assert cells[1][-1] == "none"
    assert cells[2] == [
        *("`clip *`", "70 [48, 85] (50 to 90)", "100 [84, 100] (100)", "50 [30, 70] (50)"),
        *("0.71 [0.41, 1.18]", "10 [3, 30] (10)", "0 [0, 16] (0)"),
    ]
    assert cells[3] == [*("`rt2`", "20 [6, 51]", "100 [72, 100]", "-", "-", "10 [2, 40]", "0 [0, 28]")]
    assert cells[4] == ["`clip *`", "2.00 / 0.20", "2.00 / 0.10", "5.00 / 0.30", "2.00 / 0.90", "words"]
    assert cells[5][2] == "-"


def test_what_is_heeded_is_what_is_missed_when_it_is_gone() -> None:
    plain = result()

    assert plain.uses("shuffled")
    assert not plain.uses("blank")


def test_report_is_read_back(tmp_path: Path) -> None:
    written = [result(), result("rt2")]
    write(tmp_path, written)

    assert msgspec.json.decode((tmp_path / "comparison.json").read_bytes(), type=list[Result]) == written


def test_what_is_there_is_kept_unless_it_is_of_other_settings(
    tmp_path: Path,
) -> None:
    asked = Comparison(architectures=("clip", "rt2"), out=tmp_path, minutes=6.0)
    clip, rt2 = asked.runs
    for run in asked.runs:
        run.folder(tmp_path).mkdir(parents=True)
        (run.folder(tmp_path) / RESULT).write_bytes(msgspec.json.encode(result(run.architecture)))

    assert kept(asked) == {clip: result("clip"), rt2: result("rt2")}
    assert compare(asked) == [result("clip"), result("rt2")]
    assert kept(replace(asked, minutes=7.0)) == {}
    assert kept(replace(asked, architectures=("rt2", "flow"), seeds=(1, 0))) == {rt2: result("rt2")}
    (rt2.folder(tmp_path) / RESULT).write_text('{"architecture": "rt2"}')
    assert list(kept(asked)) == [clip]


def test_failed_step_is_named(tmp_path: Path) -> None:
    asked = Comparison(architectures=("clip",), data=tmp_path / "none", out=tmp_path / "out")

    with pytest.raises(ComparisonFailed, match=r"^training of clip failed: .*none.* is missing"):
        compare(asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architectures": ("rt1",)}, "unknown architecture 'rt1'"),
        ({"excluded_goals": ("lift pink",)}, "unknown goal 'lift pink'; valid: reach red, reach green"),
        ({"minutes": 0.0}, "minutes must be more than 0, got 0.0"),
        ({"seeds": (1, 1)}, r"seeds must be different numbers from 0 on, got \(1, 1\)"),
        ({"jobs": -1}, "jobs must be 0 or more, got -1"),
    ],
)
def test_wrong_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Comparison(**options)
