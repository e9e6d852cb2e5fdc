"""A scripted expert: the action for any goal from any state.

It moves along a funnel: the height that it aims for falls smoothly as the distance across the table falls.
A policy learns that far better than an expert that switches between stages.
"""

import math
from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from vla.tabletop.commands import Goal
from vla.tabletop.simulator import ACTION_HIGH, ACTION_LOW, BLOCK_X, PUSH_DISTANCE, Tabletop

# Share of the distance to the target covered in one control step.
GAIN = 0.5
# The funnel: no height within `NARROW` of the target [m], then `SLOPE` metres a metre, up to `CEILING` [m].
NARROW = 0.012
SLOPE = 3.0
CEILING = 0.10
# Gripper commands.
OPEN, CLOSED = -1.0, 1.0
# Fingertips this far above a block's centre reach it, and below it grasp it [m].
REACH_ABOVE = 0.02
GRASP_BELOW = 0.004
# A grasp closes within this distance across the table and above the block's centre [m], still descending. The
# region is wide, so that many states of the data set show it: a policy that sees only the one state in which
# the expert happens to close learns to leave the fingers as they are.
GRASP_RADIUS = 0.017
GRASP_CEILING = 0.025
# Fingers as far apart as a block is wide, with a block's centre this near [m], hold it and raise it, however
# badly. Were it let go to be grasped anew, a policy that closes a little early or aside would learn to raise
# it from one place and to let it go a few millimetres further, and would do neither.
HELD_RADIUS = 0.026
HELD_CEILING = 0.036
# The opening below which the fingers hold a block: a block leaves 0.625.
HELD_OPENING = 0.70
# The opening above which the fingers are open: held blocks and closed fingers are below.
OPENED = 0.85
# Pushing: stand this far behind the block's centre, with the fingertips at this height [m].
PUSH_BEHIND = 0.065
PUSH_HEIGHT = 0.016
# Aim this far ahead of the hand while pushing: gently, or the block tumbles [m].
PUSH_STRIDE = 0.04
# From this far behind the block's centre forward the fingers would come down on the block [m].
PUSH_CLEAR = 0.040
# A push goes on until its block is here [m]: wherever it began, it was pushed far enough. A policy without
# memory does not see where it began, and could not tell from any place before that the push is done.
PUSH_END = BLOCK_X[1] + PUSH_DISTANCE

# Three coordinates [m]; and with them the gripper's opening, or a command to it.
Point: TypeAlias = tuple[float, float, float]
Hand: TypeAlias = tuple[float, float, float, float]
S = TypeVar("S")


class Rewindable(Protocol[S]):
    """A simulator that returns to moments that it kept."""

    def step(self, action: NDArray[np.float32]) -> object:
        """Move for one control step."""

    def snapshot(self) -> S:
        """Keep this moment."""
        ...

    def restore(self, snapshot: S) -> None:
        """Return to that moment."""


def expert_action(env: Tabletop, goal: Goal) -> NDArray[np.float32]:
    """Answer with the expert's action for ``goal``: float32 [4] in physical units, within ``ACTION``.

    Once the task is done it holds still and keeps the gripper as the task has it.
    """
    hand, block = env.hand(), env.block(goal.colour)
    x, y, z, gripper = {"reach": reach, "lift": lift, "push": push}[goal.task](hand, block)
    if ended(env, goal):
        return np.array([0, 0, 0, gripper], np.float32)
    return towards((x, y, z, gripper))


def ended(env: Tabletop, goal: Goal) -> bool:
    """Return whether a goal is reached, and can be seen to be."""
    return env.block(goal.colour)[0] >= PUSH_END if goal.task == "push" else env.happens(goal)


def towards(aim: Hand) -> NDArray[np.float32]:
    """Return the action, float32 [4], that covers a share of a displacement [m] and commands the gripper."""
    x, y, z, gripper = aim
    return np.clip(np.array([GAIN * x, GAIN * y, GAIN * z, gripper], np.float32), ACTION_LOW, ACTION_HIGH)


def standing_still(state: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the action that changes nothing: float32 [..., 4] of states float [..., 4] as in ``STATE``.

    Fingers that are not open are closed or hold something: they go on closing.
    """
    still = np.zeros((*state.shape[:-1], 4), np.float32)
    still[..., 3] = np.where(state[..., 3] < OPENED, CLOSED, OPEN)
    return still


def done(chunks: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return whether the expert's chunks, float [..., T, 4], are those of a task that is done: bool [...].

    It stands exactly still then, and at no other time.
    """
    return (chunks[..., 0, :3] == 0).all(-1)


def expert_chunk(env: Tabletop, goal: Goal, horizon: int) -> NDArray[np.float32]:
    """What the expert would really do for ``goal`` from here: float32 [horizon, 4] in physical units.

    Rolls the simulation forward and returns it to this moment: the commanded episode does not notice.
    """
    return roll_out(env, lambda: expert_action(env, goal), horizon)


def roll_out(env: Rewindable[S], act: Callable[[], NDArray[np.float32]], horizon: int) -> NDArray[np.float32]:
    """Return the actions float32 [horizon, 4] that `act` takes from here; the simulator is then as before."""
    moment = env.snapshot()
    actions = np.empty((horizon, 4), np.float32)
    for step in range(horizon):
        actions[step] = act()
        if step + 1 < horizon:
            env.step(actions[step])
    env.restore(moment)
    return actions


def funnel(distance: float) -> float:
    """Height above the target [m] to keep at this distance across the table [m]."""
    return min(CEILING, max(0.0, (distance - NARROW) * SLOPE))


def _ramp(value: float, full: float, none: float) -> float:
    """1 up to ``full``, falling to 0 at ``none``."""
    return min(1.0, max(0.0, (none - value) / (none - full)))


def approach(dx: float, dy: float, dz: float) -> tuple[float, float, float]:
    """Hold back across the table while the hand is still below the funnel: rise first, knock nothing over."""
    pace = _ramp(dz, 0.03, 0.09)
    return pace * dx, pace * dy, dz


def reach(hand: Hand, block: Point) -> Hand:
    """Displacement to the target [m] and gripper command: come down over the block, fingers open."""
    (x, y, z, _), (block_x, block_y, block_z) = hand, block
    dx, dy = block_x - x, block_y - y
    return *approach(dx, dy, block_z + REACH_ABOVE + funnel(math.hypot(dx, dy)) - z), OPEN


def lift(hand: Hand, block: Point) -> Hand:
    """Displacement to the target [m] and gripper command: straddle the block, close, raise."""
    (x, y, z, _), (block_x, block_y, block_z) = hand, block
    dx, dy = block_x - x, block_y - y
    distance = math.hypot(dx, dy)
    if holds(hand, block):
        return 0.0, 0.0, CEILING, CLOSED
    if distance > GRASP_RADIUS or z - block_z > GRASP_CEILING:
        return *approach(dx, dy, block_z - GRASP_BELOW + funnel(distance) - z), OPEN
    return dx, dy, block_z - GRASP_BELOW - z, CLOSED


def holds(hand: Hand, block: Point) -> bool:
    """Whether the fingers hold the block."""
    return hand[3] <= HELD_OPENING and around(hand, block)


def around(hand: Hand, block: Point) -> bool:
    """Whether the fingers, open or not, are so near a block that closing them holds it."""
    (x, y, z, _), (block_x, block_y, block_z) = hand, block
    return math.hypot(block_x - x, block_y - y) <= HELD_RADIUS and z - block_z <= HELD_CEILING


def push(hand: Hand, block: Point, behind: float = PUSH_BEHIND, clear: float = PUSH_CLEAR) -> Hand:
    """Displacement to the target [m] and gripper command: come down behind the block, then drive forward.

    `behind` and `clear` [m] are those of a block unless they are given.
    """
    (x, y, z, _), (block_x, block_y, block_z) = hand, block
    dx, dy = block_x - behind - x, block_y - y
    ahead = max(0.0, x - (block_x - clear))
    dx, dy, dz = approach(dx, dy, PUSH_HEIGHT + funnel(math.hypot(ahead, dy)) - z)
    drive = _drive(hand, block, ahead)
    straddling = 0.015 < ahead < 0.085 and abs(block_y - y) < 0.06 and z - block_z < 0.05
    gripper = OPEN if straddling else CLOSED
    return dx + drive * (PUSH_STRIDE - dx), dy, dz, gripper


def drives(hand: Hand, block: Point) -> bool:
    """Whether the hand is where a push drives it forward."""
    return _drive(hand, block, max(0.0, hand[0] - (block[0] - PUSH_CLEAR))) > 0


def _drive(hand: Hand, block: Point, ahead: float) -> float:
    """Return how much to drive forward: as far as the hand is low, in the lane and behind the block."""
    across = abs(block[1] - hand[1])
    return _ramp(hand[2], 0.024, 0.040) * _ramp(across, 0.012, 0.025) * _ramp(ahead, 0.008, 0.015)
