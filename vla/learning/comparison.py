"""What a teacher or a pre-training saves: policies trained with and without it, for equal time or steps."""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import tyro
from tqdm import tqdm

from vla import checkpoint
from vla.evaluation.report import Rate, table
from vla.learning.acting import Actor
from vla.learning.captions import Objective
from vla.learning.curves import COLOURS, Judged, draw_rates, pooled
from vla.learning.episodes import success
from vla.learning.pretraining import Pretraining, pretrain
from vla.learning.results import Results
from vla.tabletop.commands import GOALS, Goal, parse
from vla.tabletop.simulator import Tabletop
from vla.training.imitation import train
from vla.training.settings import Settings

# Cloning alone; with a teacher; from towers that learned to tell descriptions, to say them, or both.
Arm: TypeAlias = Literal["alone", "taught", "contrast", "caption", "both"]
OBJECTIVES: dict[Arm, tuple[Objective, ...]] = {
    "contrast": ("contrast",),
    "caption": ("caption",),
    "both": ("contrast", "caption"),
}


@dataclass(frozen=True)
class Comparison:
    """Train a policy in several ways for each seed and budget, judge all alike, and draw the curves."""

    # Folder of the run: results, curves, and the policies.
    out: Path
    # Folder of demonstrations.
    data: Path = Path("data/tabletop")
    # The policy.
    architecture: str = "efficient"
    preset: Literal["default", "tiny", "base"] = "default"
    # What is compared: `taught` needs a teacher; the last three are for clip and vl_transformer.
    arms: tuple[Arm, ...] = ("alone", "taught")
    # Folder of the teacher's checkpoint.
    teacher: Path | None = None
    # Goals that are trained and judged; none named: all 12.
    goals: tuple[str, ...] = ()
    # Seeds of the weights, of the split and of every batch.
    seeds: tuple[int, ...] = (0, 1, 2)
    # For how long each policy is cloned, one policy for each: in seconds of this process's use of the
    # processor, the teacher's included, or in optimiser steps.
    budgets: tuple[int, ...] = (60,)
    unit: Literal["seconds", "steps"] = "seconds"
    # Folder of demonstrations whose pictures alone are looked at in pre-training; None: those of `data`.
    pictures: Path | None = None
    # Optimiser steps of a pre-training, frames in its batches, and its highest learning rate.
    pretraining_steps: int = 300
    pretraining_batch: int = 128
    pretraining_rate: float = 1e-3
    # Of cloning: frames in a batch, commands of each, and the highest learning rate.
    batch: int = 128
    commands: int = 4
    learning_rate: float = 3e-3
    # Closed-loop episodes that judge each policy, in the same scenes, all goals in turn; 0: train alone.
    episodes: int = 36
    # Seed of the first of these scenes.
    first_seed: int = 8_600_000
    # Threads that torch computes with, and where.
    threads: int = 1
    device: str = "cpu"
    # Go on with the run in `out`: policies that are there already are taken as they are.
    resume: bool = False

    def __post_init__(self) -> None:
        if not self.arms or not self.seeds or not self.budgets:
            raise ValueError("arms, seeds and budgets must name at least one each")
        if min(self.budgets) < 1:
            raise ValueError(f"budgets must be at least 1, got {min(self.budgets)}")
        if "taught" in self.arms and self.teacher is None:
            raise ValueError("the arm taught needs a teacher")

    @property
    def pursued(self) -> tuple[Goal, ...]:
        """The goals."""
        return tuple(map(parse, self.goals)) or GOALS

    def folder(self, seed: int, arm: Arm, budget: int | str) -> Path:
        """Where a policy lies."""
        return self.out / f"seed{seed}" / arm / str(budget)


@dataclass(frozen=True)
class Result:
    """A policy, judged."""

    seed: int
    arm: Arm
    budget: int
    # Optimiser steps that the budget was enough for.
    steps: int
    # Mean error of a displacement on held-out frames [mm].
    error_mm: float
    successes: int
    episodes: int


def run(config: Comparison) -> list[Result]:
    """Train what the folder has not yet, judge it, and write the curves.

    Raises:
        SpecError: a policy can't be trained in that way, or the folder has another run.
    """
    which = list(itertools.product(config.seeds, config.budgets, config.arms))
    if not config.episodes:
        for seed, budget, arm in tqdm(which, unit="policy", desc=str(config.out), disable=None):
            clone(config, seed, arm, budget)
        return []
    results, env = Results(config.out, config, Result, resume=config.resume), Tabletop()
    done = {(each.seed, each.budget, each.arm) for each in results.all}
    todo = [each for each in which if each not in done]
    for seed, budget, arm in tqdm(todo, unit="policy", desc=str(config.out), disable=None):
        clone(config, seed, arm, budget)
        results.add(judge(config, env, seed, arm, budget))
    draw(config, results.all)
    return results.all


def clone(config: Comparison, seed: int, arm: Arm, budget: int) -> None:
    """Train one policy, and before it what it starts from, unless they are there."""
    folder, start = config.folder(seed, arm, budget), None
    if (folder / checkpoint.CONFIG).is_file():
        return
    if arm in OBJECTIVES:
        start = config.folder(seed, arm, "pretrained")
        if not (start / checkpoint.CONFIG).is_file():
            pretrain(_pretraining(config, seed, arm, start))
    timed = config.unit == "seconds"
    settings = Settings(
        architecture=config.architecture,
        preset=config.preset,
        data=config.data,
        out=folder,
        steps=1 if timed else budget,
        minutes=budget / 60 if timed else 0.0,
        clock="process" if timed else "wall",
        batch=config.batch,
        commands=config.commands,
        learning_rate=config.learning_rate,
        excluded_goals=tuple(" ".join(goal) for goal in GOALS if goal not in config.pursued),
        seed=seed,
        # Once, at the end, that no arm spends its time on it.
        validate_every=10**9,
        threads=config.threads,
        device=config.device,
        teacher=config.teacher if arm == "taught" else None,
        start=start,
    )
    train(settings)


def _pretraining(config: Comparison, seed: int, arm: Arm, out: Path) -> Pretraining:
    if config.architecture not in ("clip", "vl_transformer"):
        raise ValueError(f"the arm {arm} is for clip and vl_transformer, not {config.architecture}")
    return Pretraining(
        data=config.pictures or config.data,
        out=out,
        architecture=config.architecture,
        preset=config.preset,
        objectives=OBJECTIVES[arm],
        steps=config.pretraining_steps,
        batch=config.pretraining_batch,
        learning_rate=config.pretraining_rate,
        seed=seed,
        threads=config.threads,
        device=config.device,
    )


def judge(config: Comparison, env: Tabletop, seed: int, arm: Arm, budget: int) -> Result:
    """Run a policy in closed loop, in phrasings that training never uses."""
    folder = config.folder(seed, arm, budget)
    about = json.loads((folder / checkpoint.PROVENANCE).read_text())
    moved = [error for name, error in about["validation_error"].items() if name.endswith("[m]")]
    scenes = range(config.first_seed, config.first_seed + config.episodes)
    rate = success(env, Actor.load(folder), config.pursued, scenes, "rest")
    error_mm = 1000 * float(np.mean(moved))
    return Result(seed, arm, budget, about["steps"], error_mm, rate.successes, rate.episodes)


def _curves(config: Comparison, results: Sequence[Result]) -> dict[Arm, list[Result]]:
    return {arm: [each for each in results if each.arm == arm] for arm in config.arms}


def _judged(results: Sequence[Result]) -> list[Judged]:
    return [Judged(each.seed, each.budget, Rate(each.successes, each.episodes)) for each in results]


def draw(config: Comparison, results: Sequence[Result]) -> None:
    """Draw success and error over the budgets; each seed thin, their mean thick.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; it comes with the extra `dev`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  only in the dev extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    rates, errors = figure.subplots(1, 2)
    curves = _curves(config, results)
    draw_rates(rates, {arm: _judged(points) for arm, points in curves.items()})
    for points, colour in zip(curves.values(), COLOURS, strict=False):
        by_budget = [[each for each in points if each.budget == budget] for budget in config.budgets]
        for seed in config.seeds:
            mine = [(each.budget, each.error_mm) for each in points if each.seed == seed]
            errors.plot(*zip(*mine, strict=True), color=colour, alpha=0.35, linewidth=0.8)
        means = [np.mean([each.error_mm for each in same]) for same in by_budget]
        errors.plot(config.budgets, means, color=colour, linewidth=2, marker="o", markersize=4)
    unit = f"cloning [{config.unit}]"
    rates.set(xlabel=unit, ylabel="success [%], 95 % interval")
    errors.set(xlabel=unit, ylabel="error of a displacement [mm]", ylim=(0, None))
    errors.spines[["top", "right"]].set_visible(False)
    rates.legend(frameon=False)
    FigureCanvasAgg(figure).print_png(config.out / "comparison.png")


def markdown(config: Comparison, results: Sequence[Result]) -> str:
    """Return success and error by arm and budget: all seeds together, and each seed's."""
    unit = "s" if config.unit == "seconds" else "steps"
    rows = [("way", f"cloning [{unit}]", "steps", "error [mm]", "success [%], 95 %", "successes by seed")]
    for (arm, points), budget in itertools.product(_curves(config, results).items(), config.budgets):
        mine = sorted((each for each in points if each.budget == budget), key=lambda each: each.seed)
        rate = pooled(_judged(mine)).get(budget, Rate(0, 0))
        rows.append(
            (
                arm,
                str(budget),
                ", ".join(str(each.steps) for each in mine),
                ", ".join(f"{each.error_mm:.2f}" for each in mine),
                rate.percent(),
                ", ".join(f"{each.successes} of {each.episodes}" for each in mine),
            )
        )
    return table(rows)


def main() -> None:
    """Run as the command line says; exits with 1 and a message where that is refused."""
    try:
        config = tyro.cli(Comparison, prog="python -m vla.learning.comparison")
        results = run(config)
    except (ValueError, OSError, ModuleNotFoundError) as error:  # SpecError is a ValueError
        sys.exit(f"error: {error}")
    if results:
        (config.out / "comparison.md").write_text(text := markdown(config, results) + "\n")
        print(text)


if __name__ == "__main__":
    main()
