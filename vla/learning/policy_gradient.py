"""Improve a cloned policy by a reward learned from preferences and the task's own, by PPO.

The policy is a Gaussian around the cloned policy's first action, and its action head alone learns; how far it
goes from the cloned one is paid for by the Kullback-Leibler divergence of both. Values are learned from what
the simulator knows (asymmetric actor and critic, Pinto et al. 2018), so that only the policy sees pictures.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

from vla import checkpoint
from vla.evaluation.report import Rate, table
from vla.learning.acting import Actor
from vla.learning.curves import Judged, draw, pooled
from vla.learning.episodes import Start, success
from vla.learning.learner import Learner, Objective
from vla.learning.preferences import Reward, accuracy, draw_pairs, fit
from vla.learning.results import Results
from vla.provenance import commit
from vla.tabletop.collection import FIRST_SCENE, SEED_STRIDE
from vla.tabletop.commands import Goal, held_out, parse
from vla.tabletop.simulator import Tabletop

# Scenes of these runs begin so many seeds of data sets on; those of preferences so far after those.
FIRST_SEED, PREFERENCES = 6000, 500_000


@dataclass(frozen=True)
class PolicyGradient:
    """Learn a reward from preferences between roll-outs of cloned policies; improve the policies by it."""

    # Folders of cloned policies, weak ones; the first is run with seed 0, the next with seed 1.
    starts: tuple[Path, ...]
    # Folder of the run: results, curve, and each seed's policy.
    out: Path = Path("runs/policy_gradient")
    # Goals that are pursued in turn, of reaching and lifting.
    goals: tuple[str, ...] = ("lift red",)
    # Where episodes begin: at rest, elsewhere near the table, or holding another block.
    start: Start = "rest"
    # Episodes of which preferences are learned, pairs of segments, their length [control steps], and the
    # share of the pairs that is held out.
    watched: int = 40
    pairs: int = 1000
    segment: int = 6
    held_out: float = 0.3
    # Updates of the policy, and episodes before each.
    iterations: int = 15
    rolled_out: int = 16
    # What the updates make large, and how.
    objective: Objective = field(default_factory=Objective)
    # Closed-loop episodes without noise that judge the policy, after each so many iterations.
    episodes: int = 40
    judge_every: int = 5
    # Seed of the first of these scenes.
    first_seed: int = 9_000_000
    # Threads that torch computes with.
    threads: int = 1
    # Go on with the run in `out`: seeds that are done stay; one that was interrupted begins again.
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("watched", "pairs", "segment", "iterations", "rolled_out", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.starts:
            raise ValueError("starts must name at least one folder")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be between 0 and 1, got {self.held_out}")
        if not self.goals or any(parse(goal).task == "push" for goal in self.goals):
            raise ValueError(f"goals must be of reaching or lifting, got {', '.join(self.goals) or 'none'}")

    @property
    def pursued(self) -> tuple[Goal, ...]:
        """The goals."""
        return tuple(map(parse, self.goals))

    def scene(self, seed: int, index: int) -> int:
        """Return the seed of a training scene, which neither evaluations nor demonstrations use."""
        return FIRST_SCENE + (FIRST_SEED + seed) * SEED_STRIDE + index


@dataclass(frozen=True)
class Point:
    """A policy, judged."""

    iteration: int
    successes: int
    episodes: int


@dataclass(frozen=True)
class Run:
    """What came of one seed."""

    seed: int
    # Of the learned reward on held-out pairs: how many are ordered as the script has them, of how many.
    right: int
    held_out: int
    # Mean return of the roll-outs before each update, task and learned rewards weighted.
    returns: tuple[float, ...]
    # Mean divergence from the cloned policy after each update.
    divergences: tuple[float, ...]
    points: tuple[Point, ...]


def run(config: PolicyGradient) -> list[Run]:
    """Run the seeds that the folder has not yet, and write the curve.

    Raises:
        SpecError: a start is no checkpoint that can act in the simulator, or the folder has another run.
    """
    results = Results(config.out, config, Run, resume=config.resume)
    torch.set_num_threads(config.threads)
    env = Tabletop()
    done = {each.seed for each in results.all}
    for seed, start in enumerate(config.starts):
        if seed not in done:
            results.add(improve(config, env, seed, start))
            _draw(config, results.all)
    return results.all


def improve(config: PolicyGradient, env: Tabletop, seed: int, start: Path) -> Run:
    """Learn a reward, improve one cloned policy, and write it into the run's folder."""
    torch.manual_seed(seed)
    actor = Actor.load(start)
    learner = Learner(config.objective, actor, Reward(), seed)
    rate = _learn_reward(config, env, learner, seed)
    points, returns, divergences = [_judge(config, env, actor, 0)], [], []
    for iteration in tqdm(range(config.iterations), unit="iteration", desc=f"seed {seed}", disable=None):
        rollouts = [
            learner.explorer.run(env, config.scene(seed, index), goal, config.start)
            for index, goal in _turns(config, iteration * config.rolled_out, config.rolled_out)
        ]
        returns.append(float(np.mean([float(learner.rewards(each).sum()) for each in rollouts])))
        divergences.append(learner.update(rollouts))
        if (iteration + 1) % config.judge_every == 0 or iteration + 1 == config.iterations:
            points.append(_judge(config, env, actor, iteration + 1))
    _save(config, env, actor, seed, start)
    return Run(seed, rate.successes, rate.episodes, tuple(returns), tuple(divergences), tuple(points))


def _turns(config: PolicyGradient, first: int, count: int) -> list[tuple[int, Goal]]:
    """Return `count` scenes' numbers with the goals in turn."""
    return [(first + index, config.pursued[index % len(config.pursued)]) for index in range(count)]


def _learn_reward(config: PolicyGradient, env: Tabletop, learner: Learner, seed: int) -> Rate:
    """Learn the reward from preferences between roll-outs; returns its accuracy on held-out pairs.

    Pairs are held out with their episodes: no moment of them was trained on.
    """
    watched = [
        learner.explorer.run(env, config.scene(seed, PREFERENCES + index), goal, config.start)
        for index, goal in _turns(config, 0, config.watched)
    ]
    moments = [each.moments for each in watched]
    kept = max(1, round((1 - config.held_out) * len(moments)))
    random = np.random.default_rng([seed, PREFERENCES])
    held = round(config.held_out * config.pairs)
    trained = draw_pairs(random, moments[:kept], config.pairs - held, config.segment)
    fit(learner.reward, trained, seed=seed)
    return accuracy(learner.reward, draw_pairs(random, moments[kept:], held, config.segment))


def _judge(config: PolicyGradient, env: Tabletop, actor: Actor, iteration: int) -> Point:
    """Run the policy without noise, in held-out phrasings."""
    scenes = range(config.first_seed, config.first_seed + config.episodes)
    rate = success(env, actor, config.pursued, scenes, config.start)
    return Point(iteration, rate.successes, rate.episodes)


def _save(config: PolicyGradient, env: Tabletop, actor: Actor, seed: int, start: Path) -> None:
    """Write the policy, which exports as any other."""
    goal = config.pursued[0]
    env.reset(config.first_seed, goal)
    example = checkpoint.Frame(env.render(actor.image_size)[None], held_out(goal, 0), env.state())
    about = {"start": start.name, "commit": commit(), "seed": seed, "iterations": config.iterations}
    folder = config.out / f"seed{seed}"
    checkpoint.save(folder, actor.config, actor.model, example, about, half=False)


def _curve(runs: Sequence[Run]) -> list[Judged]:
    return [
        Judged(run.seed, point.iteration, Rate(point.successes, point.episodes))
        for run in runs
        for point in run.points
    ]


def _draw(config: PolicyGradient, runs: Sequence[Run]) -> None:
    title = "success without noise [%], 95 % interval"
    draw(config.out / "policy_gradient.png", {"PPO from a cloned policy": _curve(runs)}, "update", title)


def markdown(runs: Sequence[Run]) -> str:
    """Return success by iteration, and how often the learned rewards are right."""
    rows = [("updates", "success [%], 95 %", "successes by seed", "return before", "divergence after")]
    for iteration, rate in pooled(_curve(runs)).items():
        each = [point for run in runs for point in run.points if point.iteration == iteration]
        seeds = ", ".join(f"{one.successes} of {one.episodes}" for one in each)
        at = max(0, iteration - 1)
        back = " ".join(f"{run.returns[at]:.2f}" for run in runs)
        moved = " ".join(f"{run.divergences[at]:.2f}" for run in runs) if iteration else "0"
        rows.append((str(iteration), rate.percent(), seeds, back, moved))
    right = ", ".join(Rate(run.right, run.held_out).percent() for run in runs)
    return f"{table(rows)}\n\nHeld-out pairs ordered as the script has them [%]: {right}."


def main() -> None:
    """Run as the command line says; exits with 1 and a message where that is refused."""
    try:
        config = tyro.cli(PolicyGradient, prog="python -m vla.learning.policy_gradient")
        runs = run(config)
    except (ValueError, ModuleNotFoundError) as error:  # SpecError is a ValueError
        sys.exit(f"error: {error}")
    (config.out / "policy_gradient.md").write_text(text := markdown(runs) + "\n")
    print(text)


if __name__ == "__main__":
    main()
