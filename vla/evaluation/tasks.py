"""`python -m vla.evaluation.tasks`: measure skills and chains of them at the workbench; write the report."""

import datetime
import functools
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from PIL import Image
from tqdm import tqdm

from vla.evaluation.policies import ArchivedPolicy
from vla.evaluation.render import PICTURE, Panel, Strip, spread, write_sheet
from vla.evaluation.report import Rate, table
from vla.evaluation.workbench import ROWS, Result, planned, run
from vla.provenance import commit
from vla.tabletop.collection import leave_to_demonstrations
from vla.workbench.simulator import Workbench
from vla_client import ActionChunk, Policy, PolicyFailure, RemotePolicy
from vla_runtime.errors import SpecError

HEAD = ("", "steps", "success", "one step", "two steps", "plans right", "next step right", "control steps")
# Seeds of a row begin so far after those of the row before.
APART = 1000
# Scenes whose plans are shown, and episodes in pictures.
SCENES, DRAWN = 10, 6


@dataclass(frozen=True)
class TaskEvaluation:
    """Pursue tasks at the workbench in closed loop; write REPORT, a contact sheet and all results as JSON."""

    # Archive (.mar) of the policy, which answers extras.plan.
    archive: Path | None = None
    # Or the root of the server that serves it, for instance http://127.0.0.1:8080.
    url: str | None = None
    # Name of the served model.
    model: str = "vla"
    # Episodes a row.
    episodes: int = 40
    # Seed of the first scene, below 2**40, where demonstrations' seeds begin; row i begins at
    # `first_seed + 1000 * i`.
    first_seed: int = 6_000_000
    # Worker processes.
    workers: int = 2
    # The Markdown that is written; its stem names the sheet and the JSON beside it.
    report: Path = Path("runs/skills.md")

    def __post_init__(self) -> None:
        if (self.archive is None) == (self.url is None):
            raise ValueError("needs one policy: --archive of a .mar, or --url of a server")
        if not 1 <= self.episodes <= APART:
            raise ValueError(f"episodes must be from 1 to {APART}, got {self.episodes}")
        leave_to_demonstrations(self.first_seed, APART * len(ROWS))


@functools.cache
def _policy(archive: Path | None, url: str | None, model: str) -> Policy:
    """One policy a process, which computes in one thread."""
    if url is not None:
        return RemotePolicy(url, model=model)
    import torch  # noqa: PLC0415  nothing else here needs it

    torch.set_num_threads(1)
    assert archive is not None
    return ArchivedPolicy(archive)


@functools.cache
def _simulator() -> Workbench:
    return Workbench()


def _run(config: TaskEvaluation, which: tuple[int, int]) -> Result:
    """Run an episode, by its row and its index in that."""
    row, index = which
    policy = _policy(config.archive, config.url, config.model)
    return run(_simulator(), policy, ROWS[row], (index, config.first_seed + APART * row + index))


def evaluate(config: TaskEvaluation) -> list[Result]:
    """Run all episodes on the workers; they come back row by row."""
    spawn = multiprocessing.get_context("spawn")
    every = [(row, index) for row in range(len(ROWS)) for index in range(config.episodes)]
    with ProcessPoolExecutor(config.workers, mp_context=spawn) as pool:
        found = pool.map(functools.partial(_run, config), every)
        return list(tqdm(found, total=len(every), unit="episode", desc="tasks"))


def markdown(config: TaskEvaluation, results: Sequence[Result]) -> str:
    """Return the report."""
    load = os.getloadavg()[0]
    rows = [_row(row.name, [each for each in results if each.row == row.name]) for row in ROWS]
    lengths = [
        _row(f"all of {n} {'step' if n == 1 else 'steps'}", [each for each in results if each.needed == n])
        for n in (1, 2, 3)
    ]
    return "\n".join(
        [
            f"By `python -m vla.evaluation.tasks`, {datetime.date.today()}, commit {commit()[:10]}, "
            f"{config.archive.name if config.archive else 'over HTTP'}, {os.cpu_count()} cores of "
            f"{platform.machine()}, load {load:.1f}. {config.episodes} closed-loop episodes a row, of at "
            f"most 50 control steps for each step; scenes of seeds from {config.first_seed} on, {APART} "
            "apart a row, and sentences that training never uses. Percent, 95 % Wilson interval in brackets.",
            "",
            table([HEAD, *rows, *lengths]),
            "",
            "One step, two steps: episodes in which so many of the steps were done. Plans right: of all "
            "requests, those whose whole plan is what the scene still needs; next step right: whose first "
            "step is.",
            "",
            "## Plans in ten scenes",
            "",
            table([("command", "first plan", "needed", "done"), *map(_scene, _shown(results))]),
            "",
        ]
    )


def _row(name: str, results: Sequence[Result]) -> tuple[str, ...]:
    steps, requests = results[0].needed, sum(each.requests for each in results)
    good = [each for each in results if each.success]
    return (
        name,
        str(steps),
        Rate(len(good), len(results)).percent(),
        *(
            Rate(sum(each.done >= count for each in results), len(results)).percent()
            if steps > count
            else "-"
            for count in (1, 2)
        ),
        f"{100 * sum(each.plans for each in results) / max(1, requests):.0f}",
        f"{100 * sum(each.firsts for each in results) / max(1, requests):.0f}",
        f"{sum(each.steps for each in good) / len(good):.0f}" if good else "-",
    )


def _shown(results: Sequence[Result]) -> list[Result]:
    """Return the first episode of rows, chains first, for each of ten scenes."""
    firsts = {each.row: each for each in reversed(results)}
    return sorted(firsts.values(), key=lambda each: -each.needed)[:SCENES]


def _scene(result: Result) -> tuple[str, ...]:
    first = result.moments[0] if result.moments else None
    plan, needed = (", ".join(first.plan), ", ".join(first.remaining)) if first else ("", "")
    return result.command, plan or "nothing more", needed, f"{result.done} of {result.needed}"


def draw(config: TaskEvaluation, results: Sequence[Result]) -> Path:
    """Write a sheet of episodes, failures among them, with the plan's next step at each moment."""
    chains = [each for each in results if each.needed > 1]
    chosen = [each for each in chains if each.success][:: max(1, sum(map(_ok, chains)) // (DRAWN // 2))]
    failed = [each for each in chains if not each.success]
    chosen = [
        *chosen[: DRAWN - min(len(failed), DRAWN // 2)],
        *failed[:: max(1, len(failed) // 3)][: DRAWN // 2],
    ]
    path = config.report.with_name(f"{config.report.stem}_episodes.png")
    write_sheet([_strip(config, result) for result in chosen], path)
    return path


def _ok(result: Result) -> bool:
    return result.success


def _strip(config: TaskEvaluation, result: Result) -> Strip:
    """Run an episode again and keep six of its moments."""
    env, kept = _simulator(), list[tuple[Image.Image, str]]()

    def keep(chunk: ActionChunk | None) -> None:
        plan = planned(chunk) if chunk else ()
        picture = Image.fromarray(env.render(2 * PICTURE)).reduce(2)
        kept.append((picture, plan[0] if plan else "nothing more" if chunk else ""))

    row = next(index for index, row in enumerate(ROWS) if row.name == result.row)
    index = result.seed - config.first_seed - APART * row
    again = run(env, _policy(config.archive, config.url, config.model), ROWS[row], (index, result.seed), keep)
    moments = spread(len(kept))
    end = (f"{again.done} of {again.needed} steps done", again.success)
    panels: list[Panel] = [(*kept[moment], end if moment == moments[-1] else None) for moment in moments]
    return Strip(result.command, panels)


def main() -> int:
    """Run the command line; returns 1 and a message where that is refused."""
    try:
        config = tyro.cli(TaskEvaluation, prog="python -m vla.evaluation.tasks")
        results = evaluate(config)
    except (PolicyFailure, SpecError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    config.report.parent.mkdir(parents=True, exist_ok=True)
    text = markdown(config, results)
    config.report.write_text(f"# Skills\n\n{text}\n![Episodes]({draw(config, results).name})\n")
    config.report.with_suffix(".json").write_text(json.dumps([asdict(each) for each in results], indent=1))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
