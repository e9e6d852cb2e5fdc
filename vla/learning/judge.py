"""`python -m vla.learning.judge`: success of checkpoints in the simulator, without an export or a server."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from vla.evaluation.report import table
from vla.learning.acting import load
from vla.learning.episodes import Start, success
from vla.tabletop.commands import GOALS, parse
from vla.tabletop.simulator import Tabletop


@dataclass(frozen=True)
class Judge:
    """Run each policy in the same scenes, in phrasings that training never uses, and print its success."""

    # Folders of checkpoints.
    folders: tyro.conf.Positional[tuple[Path, ...]]
    # Goals to pursue in turn, `lift blue` for instance; none named: all 12.
    goals: tuple[str, ...] = ()
    # Closed-loop episodes, and the seed of the first scene.
    episodes: int = 40
    first_seed: int = 8_500_000
    # Where episodes begin: at rest, elsewhere near the table, or holding another block.
    start: Start = "rest"
    # Threads that torch computes with.
    threads: int = 1


def judge(config: Judge) -> str:
    """Return the table of successes; raises SpecError for a checkpoint that can't act in the simulator."""
    torch.set_num_threads(config.threads)
    env, goals = Tabletop(), tuple(map(parse, config.goals)) or GOALS
    rows = [("policy", "success [%], 95 %", "episodes")]
    for folder in tqdm(config.folders, unit="policy", disable=None):
        scenes = range(config.first_seed, config.first_seed + config.episodes)
        rate = success(env, load(folder), goals, scenes, config.start)
        rows.append((f"{folder.parent.name}/{folder.name}", rate.percent(), str(rate.episodes)))
    return table(rows)


def main() -> None:
    """Run the command line; exits with 1 and a message where that is refused."""
    try:
        print(judge(tyro.cli(Judge, prog="python -m vla.learning.judge")))
    except ValueError as error:  # also SpecError
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
