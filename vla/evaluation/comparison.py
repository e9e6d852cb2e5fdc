"""`python -m vla.evaluation compare`: every architecture on the same demonstrations with the same budget.

The budget is time on one core: a large architecture makes fewer steps in it. Some goals are never commanded
in training, so that these combinations of task and colour are new in the evaluation. Each architecture goes
the way of any policy, by the same commands: `vla.training`, `export`, `vla.evaluation`.
"""

import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import msgspec
import tyro
from tqdm import tqdm

from vla.evaluation import comparison_report, probes
from vla.evaluation.comparison_report import Result
from vla.evaluation.report import Rate
from vla.models import ARCHITECTURES, module_of
from vla.tabletop.commands import GOALS, parse

RESULT, LOG = "result.json", "log.txt"
# In the trained goals; a further one, `excluded`, has held-out phrasings of the goals that training excluded.
CONDITIONS = ("held_out", "seen", "shuffled", "blank")
# Batch sizes whose latency is measured.
BATCH_SIZES = (1, 8)


class ComparisonFailed(RuntimeError):
    """A step of an architecture failed; the message says which, and ends with what it printed."""


@dataclass(frozen=True)
class Comparison:
    """Train every architecture on the same demonstrations with the same budget, and compare them."""

    # Architectures to compare.
    architectures: tuple[str, ...] = ARCHITECTURES
    # Which of their sizes.
    preset: Literal["default", "tiny", "base"] = "default"
    # Folder of the demonstrations, as `python -m vla.tabletop` writes it.
    data: Path = Path("data/tabletop")
    # Folder of the comparison: the report, and for each a checkpoint, an archive and a log.
    out: Path = Path("runs/comparison")
    # Time that each trains on one core [min].
    minutes: float = 8.0
    # Frames in a batch, and commands of each.
    batch: int = 32
    commands: int = 8
    # Highest learning rate.
    learning_rate: float = 2e-3
    # Goals that are never commanded in training.
    excluded_goals: tuple[str, ...] = ("lift blue", "push yellow")
    # Closed-loop episodes of each condition.
    episodes: int = 40
    # Actions of a chunk that are executed before the next observation [control steps].
    replan: int = 4
    # Architectures that are trained at once, one core each; 0: one a core.
    jobs: int = 0
    # Seed of the weights and of every batch.
    seed: int = 0
    # Do anew what `out` has already.
    fresh: bool = False

    def __post_init__(self) -> None:
        for name in self.architectures:
            module_of(name)
        for goal in self.excluded_goals:
            parse(goal)
        for name in ("minutes", "batch", "commands", "episodes", "replan"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        if self.jobs < 0:
            raise ValueError(f"jobs must be 0 or more, got {self.jobs}")

    @property
    def trained_goals(self) -> tuple[str, ...]:
        """The goals that training commands."""
        return tuple(goal for goal in map(" ".join, GOALS) if goal not in self.excluded_goals)

    def plain(self) -> dict[str, Any]:
        """Return the settings that decide a result, as JSON gives them back."""
        free = ("architectures", "data", "out", "jobs", "fresh")
        values = {name: value for name, value in asdict(self).items() if name not in free}
        return msgspec.json.decode(msgspec.json.encode(values))


def compare(comparison: Comparison) -> list[Result]:
    """Train, export and measure all; what `out` has already of the same settings is kept.

    Raises:
        ComparisonFailed: a step of one failed.
        SpecError, DatasetError: checkpoint and demonstrations do not fit.
    """
    comparison.out.mkdir(parents=True, exist_ok=True)
    found = {} if comparison.fresh else _kept(comparison)
    todo = [name for name in comparison.architectures if name not in found]
    cores = len(os.sched_getaffinity(0))
    bar = tqdm(total=len(todo), unit="architecture", desc="train and evaluate", disable=None)
    with bar, ThreadPoolExecutor(comparison.jobs or cores) as pool:
        tasks = {pool.submit(_commands, comparison, name): name for name in todo}
        try:
            for task in as_completed(tasks):
                task.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for name in tqdm(todo, unit="architecture", desc="measure", disable=None):
        found[name] = _measure(comparison, name, cores)
        (comparison.out / name / RESULT).write_bytes(msgspec.json.encode(found[name]))
    return [found[name] for name in comparison.architectures]


def _kept(comparison: Comparison) -> dict[str, Result]:
    """Return what `out` has already of these settings."""
    found = {}
    for name in comparison.architectures:
        path = comparison.out / name / RESULT
        if path.is_file():
            result = msgspec.json.decode(path.read_bytes(), type=Result)
            if result.settings == comparison.plain():
                found[name] = result
    return found


def _commands(comparison: Comparison, name: str) -> None:
    """Train, export and evaluate one architecture on one core."""
    folder = comparison.out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    training = {
        "architecture": name,
        "preset": comparison.preset,
        "data": comparison.data,
        "out": folder / "checkpoint",
        "minutes": comparison.minutes,
        "batch": comparison.batch,
        "commands": comparison.commands,
        "learning-rate": comparison.learning_rate,
        "counterfactual": 0.8,
        "seed": comparison.seed,
        "threads": 1,
    }
    _run(folder, "vla.training", training, excluded_goals=comparison.excluded_goals)
    _run(folder, "export", {"output": folder / "vla.mar"}, folder / "checkpoint")
    episodes = {
        "archive": folder / "vla.mar",
        "episodes": comparison.episodes,
        "replan": comparison.replan,
        "robots": 1,
        "out": folder / "trained",
    }
    evaluation = "vla.evaluation", episodes, "--no-pictures"
    _run(folder, *evaluation, conditions=CONDITIONS, goals=comparison.trained_goals)
    if comparison.excluded_goals:
        episodes["out"] = folder / "excluded"
        _run(folder, *evaluation, conditions=("held_out",), goals=comparison.excluded_goals)


def _run(
    folder: Path, program: str, options: dict[str, Any], *more: object, **lists: tuple[str, ...]
) -> None:
    """Run one of our programs on one core; what it prints goes into the log.

    Args:
        folder: of the architecture
        program: its module
        options: name -> value
        more: further words
        lists: name -> values
    """
    command = [sys.executable, "-m", program, *map(str, more)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    for name, values in lists.items():
        command += [f"--{name.replace('_', '-')}", *values] if values else []
    one_core = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
    with (folder / LOG).open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | one_core, check=False
        )
    if ended.returncode:
        end = (folder / LOG).read_text(errors="replace")[-2000:]
        raise ComparisonFailed(f"{program} of {folder.name} ended with status {ended.returncode}:\n{end}")


def _measure(comparison: Comparison, name: str, cores: int) -> Result:
    """Measure one architecture, alone on the machine, and gather all that is known of it."""
    folder = comparison.out / name
    checkpoint = folder / "checkpoint"
    # A process of its own: the most memory that it has had is that of this policy.
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        latency_ms, peak_mib = process.submit(
            probes.latency_and_memory, folder / "vla.mar", BATCH_SIZES, cores
        ).result()
    about = msgspec.json.decode((checkpoint / "provenance.json").read_bytes())
    config = msgspec.json.decode((checkpoint / "config.json").read_bytes())
    success = _success(folder / "trained")
    if comparison.excluded_goals:
        success["excluded"] = _success(folder / "excluded")["held_out"]
    return Result(
        architecture=name,
        settings=comparison.plain(),
        command_line=about["command_line"],
        parameters=about["parameters"],
        steps=about["steps"],
        train_s=about["wall_s"],
        units=tuple(dimension["unit"] for dimension in config["action"]["dimensions"]),
        archive_bytes=(folder / "vla.mar").stat().st_size,
        errors=probes.validation_errors(checkpoint, comparison.data),
        success=success,
        latency_ms=latency_ms,
        peak_mib=peak_mib,
    )


def _success(folder: Path) -> dict[str, Rate]:
    """Return an evaluation's successes by condition."""
    written = msgspec.json.decode((folder / "evaluation.json").read_bytes())
    return {row["condition"]: msgspec.convert(row["total"], Rate) for row in written["summaries"]}


def main(arguments: list[str]) -> int:
    """Run the command line; returns 0, or 1 and a message where that can't be done."""
    program = "python -m vla.evaluation compare"
    try:
        comparison = tyro.cli(Comparison, prog=program, args=arguments)
        results = compare(comparison)
    except (ComparisonFailed, ValueError, OSError) as error:  # also SpecError and DatasetError
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(comparison_report.write(comparison.out, results))
    return 0
