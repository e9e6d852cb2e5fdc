"""The rounds of DAgger: how a comparison is set up, and the frames that each round collects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vla.learning.acting import Actor
from vla.learning.episodes import Start, begin, mixture, record, shortened
from vla.tabletop.collection import (
    FIRST_SCENE,
    SEED_STRIDE,
    Collection,
    Episode,
    leave_to_demonstrations,
    whole,
    write,
)
from vla.tabletop.commands import Goal, parse
from vla.tabletop.demonstrations import Demonstrations
from vla.tabletop.simulator import Tabletop

# How further frames are spent: by the mixture from the starts that are judged, or by the expert alone from
# rest, which is cloning, or from the starts that are judged.
Arm = Literal["dagger", "cloning", "recovery"]
# Seed of the first of these data sets, which `python -m vla.tabletop` does not reach; scenes between rounds.
FIRST_DATA_SEED, ROUND_STRIDE = 5000, 10_000


@dataclass(frozen=True)
class Dagger:
    """Clone a policy from few demonstrations, then compare DAgger's rounds with more demonstrations."""

    # Folder of the run: results, curve, and for each seed and arm the data and the policies.
    out: Path = Path("runs/dagger")
    # What is compared: dagger, cloning (the expert's further demonstrations from rest) and recovery (those
    # from `start`).
    arms: tuple[Arm, ...] = ("dagger", "cloning", "recovery")
    # Where episodes begin that judge policies: elsewhere, near the table, or holding another block.
    start: Start = "holding"
    # Seeds: of the weights, of the scenes and of the mixture.
    seeds: tuple[int, ...] = (0, 1, 2)
    # Goals that are demonstrated, trained and commanded.
    goals: tuple[str, ...] = ("lift red",)
    # Rounds after the cloned policy, which is round 0.
    rounds: int = 4
    # Frames that the policy is cloned from, and that each round adds.
    first_frames: int = 400
    frames: int = 200
    # Of an episode each `every`-th frame is kept: the next ones show nearly the same.
    every: int = 2
    # Optimiser steps of round 0 and of each round after it.
    first_steps: int = 400
    steps: int = 200
    # beta_i = decay^i: how often the expert acts in round i.
    decay: float = 0.5
    # Closed-loop episodes that judge each round's policy, in the same scenes.
    episodes: int = 40
    # Seed of the first of these scenes.
    first_seed: int = 8_000_000
    # The policy, and the data's pictures [pixels] and labels [control steps].
    architecture: str = "command_attention"
    preset: Literal["default", "tiny", "base"] = "tiny"
    image_size: int = 64
    horizon: int = 1
    # Frames in a batch, commands of each, and the highest learning rate of each round.
    batch: int = 32
    commands: int = 1
    learning_rate: float = 5e-3
    # Threads that torch computes with; 0: one a core.
    threads: int = 1
    # Go on with the run in `out`, which must have the same settings.
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("first_frames", "frames", "every", "steps", "episodes", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be from 0 to 1, got {self.decay}")
        if not self.arms or not self.seeds or not self.goals:
            raise ValueError("arms, seeds and goals must name at least one each")
        leave_to_demonstrations(self.first_seed, self.episodes)
        reaching = any(goal.task == "reach" for goal in self.pursued)
        if self.start == "holding" and reaching:
            raise ValueError("start must be elsewhere for goals of reaching, got holding")

    @property
    def pursued(self) -> tuple[Goal, ...]:
        """The goals."""
        return tuple(map(parse, self.goals))

    def beta(self, number: int) -> float:
        """How often the expert acts in a round; always in round 0."""
        return self.decay**number


@dataclass(frozen=True)
class Round:
    """A policy, judged."""

    seed: int
    arm: Arm
    number: int
    # Frames that it was trained on.
    frames: int
    # How often the expert acted in the last of them.
    beta: float
    successes: int
    episodes: int


def policy_of(config: Dagger, seed: int, arm: Arm, number: int) -> Path:
    """Where a round's policy lies, with its data; all arms begin with one cloned policy."""
    return config.out / f"seed{seed}" / (f"{arm}{number}" if number > 0 else "cloned")


def collect(
    config: Dagger,
    env: Tabletop,
    actor: Actor | None,
    *,
    seed: int,
    number: int,
    beta: float,
    start: Start,
) -> list[Episode]:
    """Record episodes of exactly as many frames as the round adds.

    Args:
        config: of the run
        env: where they happen
        actor: acts with the expert; None: the expert alone
        seed: of the run
        number: of the round; scenes and draws follow from it and the seed
        beta: how often the expert acts
        start: where episodes begin
    """
    random = np.random.default_rng([seed, number])
    first = FIRST_SCENE + (FIRST_DATA_SEED + seed) * SEED_STRIDE + number * ROUND_STRIDE
    episodes, left = [], config.frames if number else config.first_frames
    while left:
        goal = config.pursued[len(episodes) % len(config.pursued)]
        begin(env, first + len(episodes), goal, start)
        act = mixture(env, actor, beta, random)
        episode = record(env, act, image_size=config.image_size, horizon=config.horizon, every=config.every)
        episodes.append(shortened(episode, left))
        left -= len(episodes[-1].state)
    return episodes


def episodes_of(folder: Path) -> Iterator[Episode]:
    """Read a data set's episodes; whether they succeeded is not in it, and is given as False."""
    data = Demonstrations.load(folder)
    for index in range(data.description.episodes):
        rows = data.episode == index
        parts = (getattr(data, name)[rows] for name in Episode._fields if name != "success")
        yield Episode(*parts, success=False)


def write_episodes(config: Dagger, folder: Path, episodes: Sequence[Episode], seed: int) -> None:
    """Write a data set as `python -m vla.tabletop` does, whole or not at all."""
    about = Collection(
        folder,
        len(episodes),
        seed=FIRST_DATA_SEED + seed,
        horizon=config.horizon,
        image_size=config.image_size,
        varied=0,
        early=0,
    )
    with whole(folder) as temporary:
        write(temporary, episodes, about, noise_levels=(0.0,))
