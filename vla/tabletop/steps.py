"""The steps that a task still needs, by name: what a policy that plans in symbols is to answer.

They follow from the scripted expert's own conditions: where it descends on a block, where it closes the
fingers, and where it drives forward.
"""

import math

import numpy as np
from numpy.typing import NDArray

from vla.tabletop.commands import COLOURS, Goal
from vla.tabletop.expert import (
    CEILING,
    CLOSED,
    GRASP_BELOW,
    GRASP_CEILING,
    GRASP_RADIUS,
    PUSH_BEHIND,
    Hand,
    Point,
    drives,
    holds,
    push,
    reach,
    standing_still,
    towards,
)

WAIT = "wait"
# Names of the steps, and how many a plan has: what a task does not need is waited.
STEPS = (
    *(f"go to the {colour} block" for colour in COLOURS),
    *(f"go behind the {colour} block" for colour in COLOURS),
    "grasp",
    "raise",
    "push",
    WAIT,
)
PLAN = 3


def remaining(goal: Goal, hand: Hand, block: Point, *, done: bool) -> list[int]:
    """Return the steps that a goal still needs: `PLAN` indices into `STEPS`.

    Args:
        goal: the task, on the block
        hand: the point between the fingertips [m], and their opening
        block: the block's centre [m]
        done: whether the task is done
    """
    steps = [] if done else _STEPS[goal.task](goal.colour, hand, block)
    return [STEPS.index(step) for step in [*steps, *[WAIT] * PLAN][:PLAN]]


def _reach(colour: str, _: Hand, __: Point) -> list[str]:
    return [f"go to the {colour} block"]


def _lift(colour: str, hand: Hand, block: Point) -> list[str]:
    if holds(hand, block):
        return ["raise"]
    across = math.hypot(block[0] - hand[0], block[1] - hand[1])
    there = across <= GRASP_RADIUS and hand[2] - block[2] <= GRASP_CEILING
    return ["grasp", "raise"] if there else [f"go to the {colour} block", "grasp", "raise"]


def _push(colour: str, hand: Hand, block: Point) -> list[str]:
    return ["push"] if drives(hand, block) else [f"go behind the {colour} block", "push"]


_STEPS = {"reach": _reach, "lift": _lift, "push": _push}


def carry_out(step: str, state: NDArray[np.float32], blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the expert's action for a step: float32 [4] in physical units.

    Args:
        step: of `STEPS`; the block that is grasped or pushed is the one at the fingers, or ahead of them
        state: float32 [4], as `simulator.STATE`
        blocks: float32 [N, 3], the centres in the order of `COLOURS` [m]
    """
    x, y, z, opening = (float(value) for value in state)
    hand, places = (x, y, z, opening), [(float(a), float(b), float(c)) for a, b, c in blocks]
    if step == WAIT:
        return standing_still(state)
    if step == "raise":
        return towards((0.0, 0.0, CEILING, CLOSED))
    if step == "grasp":
        near = min(places, key=lambda place: math.dist(place[:2], (x, y)))
        return towards((near[0] - x, near[1] - y, near[2] - GRASP_BELOW - z, CLOSED))
    if step == "push":
        return towards(push(hand, min(places, key=lambda place: math.dist(place[:2], (x + PUSH_BEHIND, y)))))
    _, where, _, colour, _ = step.split()
    return towards((push if where == "behind" else reach)(hand, places[COLOURS.index(colour)]))
