"""`python -m vla.evaluation.language`: measure what an archived policy understands, and write the report."""

import datetime
import multiprocessing
import os
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from archive.digest import digest
from vla.evaluation.conditions import Trial
from vla.evaluation.episodes import ENDING_STEPS, Episode, Setup, run_episode
from vla.evaluation.policies import ArchivedPolicy
from vla.evaluation.render import Recording, contact_sheet, record
from vla.evaluation.report import Rate, table
from vla.evaluation.understanding import Cell, Outcome, Run, cells
from vla.provenance import commit
from vla.tabletop.collection import leave_to_demonstrations
from vla.tabletop.looks import PLAIN
from vla.tabletop.simulator import Tabletop
from vla_client import Policy
from vla_runtime.errors import SpecError

SHEETS = {"successes": 5, "failures": 8}
# Heads of the report's tables.
ACTING = ("", "success", "target", "held by mistake", "done", "done too early", "stays", "others moved")
STANDING = ("", "held", "target", "hand moved at most [mm]", "gripper [%]", "called done")
# What is done must stay done for so long [control steps].
DWELL = 5
# A hold may move the fingers so far [share of their opening].
GRIPPER_STAYS = 0.1


@dataclass(frozen=True)
class LanguageEvaluation:
    """Run every cell in closed loop; write REPORT, contact sheets beside it, and all outcomes as JSON."""

    # Archive (.mar) of the policy.
    archive: Path = Path("model_store/vla.mar")
    # Episodes a cell.
    episodes: int = 40
    # Seed of the first scene; cell i takes the seeds from `first_seed + 1000 * i` on.
    first_seed: int = 5_000_000
    # Worker processes.
    workers: int = 2
    # The Markdown that is written; its stem names the sheets and the JSON beside it, which a run that was
    # interrupted goes on from.
    report: Path = Path("runs/language.md")
    # What the report calls the policy; empty: as its archive is called.
    name: str = ""
    # Cells to run, by parts of their names; none named: all.
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.episodes <= 1000:
            raise ValueError(f"episodes must be from 1 to 1000, got {self.episodes}")
        if not self.chosen:
            raise ValueError(f"no cell is called {', '.join(self.only)}")
        leave_to_demonstrations(self.first_seed, 1000 * len(cells()))

    @property
    def chosen(self) -> list[tuple[int, Cell]]:
        """The cells to run, with their indices."""
        return [
            (index, cell)
            for index, cell in enumerate(cells())
            if not self.only or any(part in cell.name for part in self.only)
        ]


def run_cell(config: LanguageEvaluation, index: int) -> Outcome:
    """Run a cell's episodes, in a process of its own with one thread."""
    import torch  # noqa: PLC0415  nothing else here needs it

    torch.set_num_threads(1)
    cell = cells()[index]
    with closing(Tabletop()) as env, ArchivedPolicy(config.archive) as policy:
        found = [
            _run(env, policy, cell, each, config.first_seed + 1000 * index) for each in range(config.episodes)
        ]
    says_done = any(episode.says_done for episode, _ in found)
    moved = [float(np.linalg.norm(change[:3])) for _, change in found]
    gripped = [abs(float(change[3])) for _, change in found]
    return Outcome(
        cell=cell.name,
        commands=tuple(episode.trial.command for episode, _ in found),
        good=tuple(_good(cell, episode, change) for (episode, _), change in zip(found, gripped, strict=True)),
        all_held=tuple(episode.held == len(episode.latency_ms) for episode, _ in found),
        any_held=tuple(episode.held > 0 for episode, _ in found),
        drift=tuple(moved),
        gripped=tuple(gripped),
        done_in_time=tuple(episode.done_in_time for episode, _ in found if says_done),
        done_early=tuple(episode.done_early for episode, _ in found if says_done),
        stayed=tuple(episode.stayed for episode, _ in found),
        disturbed=tuple(episode.disturbed > 0 for episode, _ in found),
    )


def _run(
    env: Tabletop, policy: Policy, cell: Cell, index: int, first_seed: int
) -> tuple[Episode, NDArray[np.float32]]:
    """Run one episode; returns it and how the robot's state changed: float32 [4]."""
    trial = cell.trial(index, first_seed + index)
    dress(env, cell, trial)
    before = env.state()
    episode = run_episode(env, policy, trial, cell.setup(Setup(dwell=DWELL)))
    return episode, env.state() - before


def dress(env: Tabletop, cell: Cell, trial: Trial) -> None:
    """Give the scene of a trial its look."""
    env.reset(trial.seed, trial.goal)
    env.look = cell.look(np.random.default_rng([trial.seed, 2]), env.blocks())


def _good(cell: Cell, episode: Episode, gripped: float) -> bool:
    if cell.acts:
        return episode.success
    return episode.error is None and episode.held == len(episode.latency_ms) and gripped <= GRIPPER_STAYS


def evaluate(config: LanguageEvaluation) -> list[Outcome]:
    """Run the cells on the workers; those that the JSON has already, of the same settings, are not run again.

    They come back in the table's order.
    """
    path = config.report.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    run = Run(config.name or config.archive.stem, digest(config.archive), config.episodes, config.first_seed)
    run = run.resumed(path)
    todo = [index for index, cell in config.chosen if cell.name not in run.outcomes]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.workers, mp_context=spawn) as pool:
        tasks = [pool.submit(run_cell, config, index) for index in todo]
        for task in tqdm(as_completed(tasks), total=len(tasks), unit="cell", disable=None):
            found = task.result()
            run.outcomes[found.cell] = found
            run.save(path)
            print(f"{found.cell}: {100 * found.rate:.0f} %", file=sys.stderr, flush=True)
    return [run.outcomes[cell.name] for _, cell in config.chosen]


def markdown(config: LanguageEvaluation, outcomes: Sequence[Outcome]) -> str:
    """Return the report."""
    pairs = list(zip((cell for _, cell in config.chosen), outcomes, strict=True))
    acting = [_acting(*pair) for pair in pairs if pair[0].acts]
    still = [_standing(*pair) for pair in pairs if not pair[0].acts]
    lines = [
        f"# What {config.name or config.archive.stem} understands",
        "",
        f"By `make evaluate-language`, {datetime.date.today()}, commit {commit()[:10]}, archive "
        f"`{digest(config.archive)[:16]}`, {os.cpu_count()} cores of "
        f"{platform.machine()}, in process. {config.episodes} closed-loop episodes a row; scenes of seeds "
        f"from {config.first_seed} on, 1000 apart a row, and sentence patterns that training never uses. "
        "Percent, 95 % Wilson interval in brackets. A target that is missed says so.",
        "",
        "## What can be done",
        "",
        table([ACTING, *acting]),
        "",
        "Held by mistake: episodes with at least one answer held. Done: of the successes, those that the "
        f"policy calls done within {ENDING_STEPS} steps; too early: episodes that it calls done before a "
        f"success, or without one. Stays: episodes that succeed, and are still done in each of {DWELL} more "
        "steps that the policy takes; others moved: episodes in which a block moved that was not meant.",
        "",
        "## What can't be done",
        "",
        "Held: every answer of the first five steps stands still, and the gripper stays as it is, to a tenth "
        "of its opening.",
        "",
        table([STANDING, *still]),
        "",
    ]
    return "\n".join(lines)


def _acting(cell: Cell, outcome: Outcome) -> tuple[str, ...]:
    wrong = sum(outcome.any_held) / len(outcome.good)
    return (
        cell.name,
        _share(outcome),
        _target(cell, outcome),
        f"{100 * wrong:.0f}",
        _percent(sum(outcome.done_in_time), sum(outcome.good)) if outcome.done_early else "-",
        _early(outcome),
        *(_percent(sum(each), len(each)) for each in (outcome.stayed, outcome.disturbed)),
    )


def _standing(cell: Cell, outcome: Outcome) -> tuple[str, ...]:
    drift, gripped = f"{1000 * max(outcome.drift):.0f}", f"{100 * max(outcome.gripped):.0f}"
    return cell.name, _share(outcome), _target(cell, outcome), drift, gripped, _early(outcome)


def _early(outcome: Outcome) -> str:
    return _percent(sum(outcome.done_early), len(outcome.done_early)) if outcome.done_early else "-"


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.0f}" if of else "-"


def _share(outcome: Outcome) -> str:
    return Rate(sum(outcome.good), len(outcome.good)).percent()


def _target(cell: Cell, outcome: Outcome) -> str:
    if cell.target is None:
        return "-"
    return f"{100 * cell.target:.0f}{'' if outcome.rate >= cell.target else ', missed'}"


def draw(config: LanguageEvaluation, outcomes: Sequence[Outcome]) -> list[Path]:
    """Write a sheet of successes and one of failures, each of different cells as far as there are any."""
    written = []
    with closing(Tabletop()) as env, ArchivedPolicy(config.archive) as policy:
        for name, count in SHEETS.items():
            shown = _examples(config, outcomes, good=name == "successes")[:count]
            if shown:
                path = config.report.with_name(f"{config.report.stem}_{name}.png")
                contact_sheet([_record(env, policy, cell, trial) for cell, trial in shown], path)
                written.append(path)
        env.look = PLAIN
    return written


def _examples(
    config: LanguageEvaluation, outcomes: Sequence[Outcome], *, good: bool
) -> list[tuple[Cell, Trial]]:
    """Return the first such trial of every cell where the policy acts, then of the others."""
    found = []
    for (index, cell), outcome in zip(config.chosen, outcomes, strict=True):
        turns = [turn for turn, value in enumerate(outcome.good) if value == good]
        if turns:
            turn = turns[min(len(turns) - 1, index)] if good else turns[0]
            found.append((cell, cell.trial(turn, config.first_seed + 1000 * index + turn)))
    worst = {outcome.cell: outcome.rate for outcome in outcomes}
    acting = [pair for pair in found if pair[0].acts]
    return (
        acting[:: max(1, len(acting) // SHEETS["successes"])]
        if good
        else sorted(found, key=lambda pair: worst[pair[0].name])
    )


def _record(env: Tabletop, policy: Policy, cell: Cell, trial: Trial) -> Recording:
    dress(env, cell, trial)
    made = record(env, policy, trial, cell.setup(Setup()))
    return replace(made, acted_on=not cell.acts and made.episode.held < len(made.episode.latency_ms))


def main() -> int:
    """Run the command line; returns 1 and a message where that is refused."""
    try:
        config = tyro.cli(LanguageEvaluation, prog="python -m vla.evaluation.language")
        outcomes = evaluate(config)
    except (SpecError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = markdown(config, outcomes)
    sheets = [f"![{path.stem.split('_')[-1].capitalize()}]({path.name})\n" for path in draw(config, outcomes)]
    config.report.write_text("\n".join([text, *sheets]))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
