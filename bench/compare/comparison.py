"""`python -m bench compare`: every architecture on the same demonstrations with the same budget.

The budget is time on one core, by the clock: a large architecture makes fewer steps in it. Some goals are
never commanded in training, so that these combinations of task and colour are new in the evaluation. Each
architecture goes the way of any policy: it is trained, exported, and its archive evaluated. It does so once
for each seed, in a folder of its own: what is there of the same settings is not done again, and the report is
written anew whenever a seed has all.
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
from typing import Any, Literal, NamedTuple

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

RESULT, MADE, LOG = "result.json", "made.json", "log.txt"
# In the trained goals; a further one, `excluded`, has held-out phrasings of the goals that training excluded.
CONDITIONS: tuple[Condition, ...] = ("held_out", "seen", "shuffled", "blank")
# Batch sizes whose latency is measured.
BATCH_SIZES = (1, 8)
SPAWN = get_context("spawn")
# What keeps a process to one core: OpenMP, and Mesa's renderer.
ONE_CORE = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}


class Run(NamedTuple):
    """One training of one architecture."""

    architecture: str
    seed: int

    def folder(self, out: Path) -> Path:
        """Return where all of it goes."""
        return out / self.architecture / f"seed{self.seed}"


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
    # Folder of the comparison: the report, and for each seed of each a checkpoint, an archive and a log.
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
    # Seeds of the weights and of every batch: each architecture is trained once with each.
    seeds: tuple[int, ...] = (0,)
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
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different numbers from 0 on, got {self.seeds}")
        if self.jobs < 0:
            raise ValueError(f"jobs must be 0 or more, got {self.jobs}")

    @property
    def trained_goals(self) -> tuple[str, ...]:
        """The goals that training commands."""
        return tuple(goal for goal in map(" ".join, GOALS) if goal not in self.excluded_goals)

    def plain(self) -> dict[str, Any]:
        """Return the settings that decide a result, as JSON gives them back."""
        free = ("architectures", "data", "out", "jobs", "fresh", "seeds")
        values = {name: value for name, value in asdict(self).items() if name not in free}
        return msgspec.json.decode(msgspec.json.encode(values))

    @property
    def runs(self) -> list[Run]:
        """All trainings, seed by seed."""
        return [Run(name, seed) for seed in self.seeds for name in self.architectures]


def compare(comparison: Comparison) -> list[Result]:
    """Train, export and measure all; what `out` has already of the same settings is kept.

    Raises:
        ComparisonFailed: a step of one failed.
        SpecError, DatasetError: checkpoint and demonstrations do not fit.
    """
    comparison.out.mkdir(parents=True, exist_ok=True)
    found = {} if comparison.fresh else kept(comparison)
    for seed in comparison.seeds:
        todo = [run for run in comparison.runs if run.seed == seed and run not in found]
        _make_all(comparison, [run for run in todo if comparison.fresh or not _made(comparison, run)])
        for run in tqdm(todo, unit="run", desc=f"measure seed {seed}", disable=None):
            found[run] = _measure(comparison, run)
            (run.folder(comparison.out) / RESULT).write_bytes(msgspec.json.encode(found[run]))
        report.write(comparison.out, [found[run] for run in comparison.runs if run in found])
    return [found[run] for run in comparison.runs]


def _make_all(comparison: Comparison, todo: Sequence[Run]) -> None:
    """Train, export and evaluate runs, as many at once as there are jobs."""
    jobs = comparison.jobs or len(os.sched_getaffinity(0))
    bar = tqdm(total=len(todo), unit="run", desc="train and evaluate", disable=None)
    with bar, _environment(ONE_CORE), ProcessPoolExecutor(jobs, SPAWN, max_tasks_per_child=1) as pool:
        tasks = [pool.submit(make, comparison, run) for run in todo]
        try:
            for task in as_completed(tasks):
                task.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def kept(comparison: Comparison) -> dict[Run, Result]:
    """Return what `out` has already of these settings, by run."""
    found = {}
    for run in comparison.runs:
        path = run.folder(comparison.out) / RESULT
        # Of another version of this code.
        with contextlib.suppress(FileNotFoundError, msgspec.ValidationError):
            result = msgspec.json.decode(path.read_bytes(), type=Result)
            if result.settings == comparison.plain():
                found[run] = result
    return found


def _made(comparison: Comparison, run: Run) -> bool:
    """Whether a run of these settings was trained and evaluated, and only has to be measured."""
    path = run.folder(comparison.out) / MADE
    return path.is_file() and msgspec.json.decode(path.read_bytes()) == comparison.plain()


def make(comparison: Comparison, run: Run) -> None:
    """Train, export and evaluate one architecture, in a process that does nothing else.

    Raises:
        ComparisonFailed: see there.
    """
    folder = run.folder(comparison.out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    step = "training"
    with (folder / LOG).open("w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    try:
        train(_training(comparison, run))
        step = "export"
        export(Options(str(folder / "checkpoint"), folder / "vla.mar"))
        step = "evaluation"
        for evaluation in _evaluations(comparison, folder):
            evaluation.out.mkdir()
            write(evaluation, evaluate(evaluation))
        (folder / MADE).write_bytes(msgspec.json.encode(comparison.plain()))
    except Exception as error:
        traceback.print_exc()
        raise ComparisonFailed(
            f"{step} of {run.architecture} failed: {error} (log: {folder / LOG})"
        ) from None


def _training(comparison: Comparison, run: Run) -> Settings:
    return Settings(
        architecture=run.architecture,
        preset=comparison.preset,
        data=comparison.data,
        out=run.folder(comparison.out) / "checkpoint",
        minutes=comparison.minutes,
        batch=comparison.batch,
        commands=comparison.commands,
        learning_rate=comparison.learning_rate,
        counterfactual=0.8,
        excluded_goals=comparison.excluded_goals,
        seed=run.seed,
        threads=1,
    )


def _evaluations(comparison: Comparison, folder: Path) -> Iterator[Evaluation]:
    """Yield that of the goals that training commands, then that of those that it excludes."""
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


def _measure(comparison: Comparison, run: Run) -> Result:
    """Measure one run, alone on the machine, and gather all that is known of it."""
    folder = run.folder(comparison.out)
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
        architecture=run.architecture,
        seed=run.seed,
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
        privileged=module_of(run.architecture).Model.privileged,
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
