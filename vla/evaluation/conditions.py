"""What is put to the policy: phrasings, ablations and baselines, as a list of trials.

===============  ====================================================================================
held_out         the goal in phrasings that training never used
seen             the goal in training phrasings
wrong_colour     held-out phrasing with another colour; success is still the ORIGINAL block's
blank            held-out phrasing and a uniform grey picture
shuffled         held-out phrasing of another goal drawn at random; success is the original goal's
expert           no policy: the scripted expert
random           no policy: uniformly random actions
===============  ====================================================================================

A policy that uses both picture and words is near 1 on the first two and near chance on the ablations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vla.tabletop.commands import COLOURS, GOALS, Goal, held_out, phrase

Condition = Literal["held_out", "seen", "wrong_colour", "blank", "shuffled", "expert", "random"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
# Those that need no policy.
BASELINES = ("expert", "random")


@dataclass(frozen=True)
class Trial:
    """One episode to be run."""

    condition: Condition
    # Seed of the scene; also sent as the request's seed.
    seed: int
    # What success is judged on.
    goal: Goal
    # What the command asks for: another goal than `goal` in `wrong_colour` and `shuffled`.
    commanded: Goal
    command: str


def trials(
    condition: Condition, episodes: int, first_seed: int, goals: Sequence[Goal] = GOALS
) -> list[Trial]:
    """Return `episodes` trials, balanced over the goals; trial i has the seed `first_seed + i`.

    Scenes and goals are the same in every condition, so that conditions differ in nothing else.
    """
    return [
        _trial(condition, goals[index % len(goals)], index // len(goals), first_seed + index)
        for index in range(episodes)
    ]


def _trial(condition: Condition, goal: Goal, turn: int, seed: int) -> Trial:
    """Make the trial of a goal's turn-th episode; turns walk through the phrasings and the other colours."""
    commanded = goal
    if condition == "wrong_colour":
        others = [colour for colour in COLOURS if colour != goal.colour]
        commanded = Goal(goal.task, others[turn % len(others)])
    elif condition == "shuffled":
        others = [other for other in GOALS if other != goal]
        commanded = others[np.random.default_rng(seed).integers(len(others))]
    say = phrase if condition == "seen" else held_out
    return Trial(condition, seed, goal, commanded, say(commanded, turn))
