"""DAgger: train on the states that the policy itself visits, labelled by the expert.

Ross, Gordon & Bagnell 2011, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online
Learning". In round i the expert acts with probability beta_i = decay^i at each step, else the policy; what is
seen is labelled by the expert for all goals, joined to all that was seen before, and trained on. Beside it,
two ways in which the expert alone spends as many frames, on from the same cloned policy.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tyro
from tqdm import tqdm

from vla.evaluation.report import Rate, table
from vla.learning.acting import Actor
from vla.learning.curves import Judged, draw, pooled
from vla.learning.episodes import success
from vla.learning.results import Results
from vla.learning.rounds import Arm, Dagger, Round, collect, episodes_of, policy_of, write_episodes
from vla.tabletop.commands import GOALS
from vla.tabletop.demonstrations import DESCRIPTION, Demonstrations
from vla.tabletop.simulator import Tabletop
from vla.training.imitation import train
from vla.training.progress import STATE
from vla.training.settings import Settings


def run(config: Dagger) -> list[Round]:
    """Run what the folder has not yet, and write the curve.

    Raises:
        SpecError: the architecture can't act in the simulator, or the folder has another run.
    """
    results = Results(config.out, config, Round, resume=config.resume)
    done = {(each.seed, each.arm, each.number) for each in results.all}
    every = itertools.product(config.seeds, config.arms, range(config.rounds + 1))
    todo = [which for which in every if which not in done]
    env = Tabletop()
    for seed, arm, number in tqdm(todo, unit="round", desc=str(config.out), disable=None):
        same = [each for each in results.all if (each.seed, each.number) == (seed, number) == (seed, 0)]
        results.add(replace(same[0], arm=arm) if same else _round(config, env, seed, arm, number))
        _draw(config, results.all)
    return results.all


def _round(config: Dagger, env: Tabletop, seed: int, arm: Arm, number: int) -> Round:
    """Collect a round's frames, train on all so far, judge the policy."""
    beta = config.beta(number) if arm == "dagger" else 1.0
    folder, before = policy_of(config, seed, arm, number), policy_of(config, seed, arm, number - 1)
    data = folder / "data"
    if not (data / DESCRIPTION).is_file():
        actor = Actor.load(before) if beta < 1 else None
        added = collect(
            config,
            env,
            actor,
            seed=seed,
            number=number,
            beta=beta,
            start="rest" if arm == "cloning" or not number else config.start,
        )
        write_episodes(config, data, [*(episodes_of(before / "data") if number else ()), *added], seed)
    if not (folder / "config.json").is_file():
        train(_settings(config, data, folder, before if number else None, seed))
    scenes = range(config.first_seed, config.first_seed + config.episodes)
    rate = success(env, Actor.load(folder), config.pursued, scenes, config.start)
    frames = len(Demonstrations.load(data))
    return Round(seed, arm, number, frames, beta, rate.successes, rate.episodes)


def _settings(config: Dagger, data: Path, out: Path, start: Path | None, seed: int) -> Settings:
    """Return how a round is trained, on from the last round's weights; goes on where it was interrupted."""
    steps = config.steps if start else config.first_steps
    excluded = tuple(" ".join(goal) for goal in GOALS if goal not in config.pursued)
    return Settings(
        architecture=config.architecture,
        preset=config.preset,
        data=data,
        out=out,
        steps=steps,
        batch=config.batch,
        commands=config.commands,
        learning_rate=config.learning_rate,
        excluded_goals=excluded,
        validate_every=steps,
        threads=config.threads,
        start=start,
        seed=seed,
        resume=(out / STATE).is_file(),
    )


def _curves(config: Dagger, results: Sequence[Round]) -> dict[str, list[Judged]]:
    """Return the arms' curves over frames."""
    return {
        arm: [
            Judged(each.seed, each.frames, Rate(each.successes, each.episodes))
            for each in results
            if each.arm == arm
        ]
        for arm in config.arms
        if any(each.arm == arm for each in results)
    }


def _draw(config: Dagger, results: Sequence[Round]) -> None:
    title = "success [%], 95 % interval"
    draw(config.out / "dagger.png", _curves(config, results), "frames trained on", title)


def markdown(config: Dagger, results: Sequence[Round]) -> str:
    """Return success by round: all seeds together, and each seed's successes."""
    rows = [("way", "round", "frames", "success [%], 95 %", "successes by seed")]
    for arm, points in _curves(config, results).items():
        for number, (frames, rate) in enumerate(pooled(points).items()):
            by_seed = [point.rate for point in points if point.at == frames]
            each = ", ".join(f"{one.successes} of {one.episodes}" for one in by_seed)
            rows.append((arm, str(number), str(frames), rate.percent(), each))
    return table(rows)


def main() -> None:
    """Run as the command line says; exits with 1 and a message where that is refused."""
    try:
        config = tyro.cli(Dagger, prog="python -m vla.learning.dagger")
        results = run(config)
    except (ValueError, ModuleNotFoundError) as error:  # SpecError is a ValueError
        sys.exit(f"error: {error}")
    (config.out / "dagger.md").write_text(text := markdown(config, results) + "\n")
    print(text)


if __name__ == "__main__":
    main()
