"""`python -m bench compare`: every architecture on the same demonstrations with the same budget.

The budget is time on one core, by the clock: a large architecture makes fewer steps in it. Some goals are
never commanded in training, so that these combinations of task and colour are new in the evaluation. Each
architecture goes the way of any policy: it is trained, exported, and its archive evaluated.
"""

import contextlib
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import msgspec
import tyro
from tqdm import tqdm

from bench import alone
from bench.alone import Process
from bench.compare import probes, report
from bench.compare.report import Result
from export.export import Options, export
from vla.evaluation.conditions import Condition
from vla.evaluation.evaluate import Evaluation, evaluate, write
from vla.evaluation.report import Rate
from vla.models import ARCHITECTURES, module_of
from vla.tabletop.commands import GOALS, parse
from vla.training.imitation import train
from vla.training.settings import Settings

RESULT, LOG = "result.json", "log.txt"
# In the trained goals; a further one, `excluded`, has held-out phrasings of the goals that training excluded.
CONDITIONS: tuple[Condition, ...] = ("held_out", "seen", "shuffled", "blank")
# Batch sizes whose latency is measured.
BATCH_SIZES = (1, 8)
SPAWN = get_context("spawn")
# What keeps a process to one core: OpenMP, and Mesa's renderer.
ONE_CORE = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}


class ComparisonFailed(RuntimeError):
    """A step of an architecture failed; the message says which and why, and where its log is."""


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
    # Time that each trains on one core, by the clock [min].
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
    found = {} if comparison.fresh else kept(comparison)
    todo = [name for name in comparison.architectures if name not in found]
    jobs = comparison.jobs or len(os.sched_getaffinity(0))
    bar = tqdm(total=len(todo), unit="architecture", desc="train and evaluate", disable=None)
    with bar, _environment(ONE_CORE), ProcessPoolExecutor(jobs, SPAWN, max_tasks_per_child=1) as pool:
        tasks = [pool.submit(make, comparison, name) for name in todo]
        try:
            for task in as_completed(tasks):
                task.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for name in tqdm(todo, unit="architecture", desc="measure", disable=None):
        found[name] = _measure(comparison, name)
        (comparison.out / name / RESULT).write_bytes(msgspec.json.encode(found[name]))
    return [found[name] for name in comparison.architectures]


def kept(comparison: Comparison) -> dict[str, Result]:
    """Return what `out` has already of these settings, by architecture."""
    found = {}
    for name in comparison.architectures:
        path = comparison.out / name / RESULT
        # Of another version of this code.
        with contextlib.suppress(FileNotFoundError, msgspec.ValidationError):
            result = msgspec.json.decode(path.read_bytes(), type=Result)
            if result.settings == comparison.plain():
                found[name] = result
    return found


def make(comparison: Comparison, name: str) -> None:
    """Train, export and evaluate one architecture, in a process that does nothing else.

    Raises:
        ComparisonFailed: see there.
    """
    folder = comparison.out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    step = "training"
    with (folder / LOG).open("w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    try:
        train(_training(comparison, name))
        step = "export"
        export(Options(str(folder / "checkpoint"), folder / "vla.mar"))
        step = "evaluation"
        for evaluation in _evaluations(comparison, name):
            evaluation.out.mkdir()
            write(evaluation, evaluate(evaluation))
    except Exception as error:
        traceback.print_exc()
        raise ComparisonFailed(f"{step} of {name} failed: {error} (log: {folder / LOG})") from None


def _training(comparison: Comparison, name: str) -> Settings:
    return Settings(
        architecture=name,
        preset=comparison.preset,
        data=comparison.data,
        out=comparison.out / name / "checkpoint",
        minutes=comparison.minutes,
        batch=comparison.batch,
        commands=comparison.commands,
        learning_rate=comparison.learning_rate,
        counterfactual=0.8,
        excluded_goals=comparison.excluded_goals,
        seed=comparison.seed,
        threads=1,
    )


def _evaluations(comparison: Comparison, name: str) -> Iterator[Evaluation]:
    """Yield that of the goals that training commands, then that of those that it excludes."""
    folder = comparison.out / name
    pursued = {"trained": (CONDITIONS, comparison.trained_goals)}
    if comparison.excluded_goals:
        pursued["excluded"] = (("held_out",), comparison.excluded_goals)
    for part, (conditions, goals) in pursued.items():
        yield Evaluation(
            archive=folder / "vla.mar",
            conditions=conditions,
            goals=goals,
            episodes=comparison.episodes,
            replan=comparison.replan,
            robots=1,
            out=folder / part,
            pictures=False,
        )


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _measure(comparison: Comparison, name: str) -> Result:
    """Measure one architecture, alone on the machine, and gather all that is known of it."""
    folder = comparison.out / name
    checkpoint = folder / "checkpoint"
    # A process of its own: the most memory that it has had is that of this policy.
    with Process(folder / "vla.mar", "cpu") as process:
        latency_ms = {size: process.call(alone.batch_ms, size) for size in BATCH_SIZES}
        peak_mib = process.call(alone.own_peak_mib)
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
        privileged=module_of(name).Model.privileged,
    )


def _success(folder: Path) -> dict[str, Rate]:
    """Return an evaluation's successes by condition."""
    written = msgspec.json.decode((folder / "evaluation.json").read_bytes())
    return {row["condition"]: msgspec.convert(row["total"], Rate) for row in written["summaries"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or 1 and a message where that can't be done."""
    try:
        comparison = tyro.cli(Comparison, prog="python -m bench compare", args=arguments)
        results = compare(comparison)
    except (ComparisonFailed, BrokenExecutor, ValueError, OSError) as error:  # also SpecError, DatasetError
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.write(comparison.out, results))
    return 0
