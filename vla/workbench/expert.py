"""The scripted expert: the action for any step from any state, along the funnels of the tabletop's."""

import math

import numpy as np
from numpy.typing import NDArray

from vla.tabletop.expert import (
    CEILING,
    CLOSED,
    NARROW,
    OPEN,
    OPENED,
    Hand,
    approach,
    funnel,
    lift,
    push,
    reach,
    roll_out,
    standing_still,
    towards,
)
from vla.tabletop.simulator import BLOCK_HALF
from vla.workbench.commands import BLOCKS, Step
from vla.workbench.simulator import Workbench

# Opening: stand this far behind the middle of the handle; from `HANDLE_CLEAR` behind it forward the fingers
# would come down on it [m].
HANDLE_BEHIND, HANDLE_CLEAR = 0.026, 0.016
# A hand so near a block across and above it rises straight before it goes elsewhere [m].
LEAVE_RADIUS, LEAVE_HEIGHT = 0.045, 0.055
# The hand stays this high until it is so far forward of the handle, or so far beside it [m].
HANDLE_HEIGHT, PASS_HANDLE, HANDLE_LANE = 0.10, 0.020, 0.080
# A held block is let go within this distance of its place across, and above it, where it still ends inside or
# on top [m]. The region is wide, so that many states of the data set show it.
RELEASE = {"tray": (0.025, 0.030), "drawer": (0.021, 0.030)}
RELEASE_ON_BLOCK = (0.016, 0.016)
# It is aimed so far above its place [m].
PLACE_ABOVE = 0.006
# The furthest displacement across while a block is carried [m]: faster, and it slips out of the fingers.
CARRY = 0.04
# Height over a zone [m].
HOVER = 0.06


def expert_action(env: Workbench, step: Step) -> NDArray[np.float32]:
    """Answer with the expert's action for a step: float32 [4] in physical units, within ``ACTION``.

    Once the step is clearly done it holds still and leaves the gripper as it is.
    """
    if env.happens(step, clearly=True):
        return standing_still(env.state())
    return towards(_aim(env, step))


def expert_chunk(env: Workbench, step: Step, horizon: int) -> NDArray[np.float32]:
    """What the expert would really do for a step from here: float32 [horizon, 4] in physical units."""
    return roll_out(env, lambda: expert_action(env, step), horizon)


def _aim(env: Workbench, step: Step) -> Hand:
    """Displacement to the target [m] and gripper command."""
    if leaving := _leave(env, step):
        return leaving
    hand = env.hand()
    if step.skill == "place":
        return _place(env, step.target)
    if step.skill == "open":
        return push(hand, env.where("handle"), HANDLE_BEHIND, HANDLE_CLEAR)
    point = env.where(step.target)
    if step.skill == "navigate":
        gripper = float(standing_still(env.state())[3])
        dx, dy = point[0] - hand[0], point[1] - hand[1]
        return *approach(dx, dy, HOVER + funnel(math.hypot(dx, dy)) - hand[2]), gripper
    return {"reach": reach, "pick": lift, "push": push}[step.skill](hand, point)


def _leave(env: Workbench, step: Step) -> Hand | None:
    """Let go of a block that the step is not about, and rise; over the drawer's handle, not through it."""
    x, y, z, opening = env.hand()
    if step.skill != "place" and not (step.skill == "navigate" and env.held()):
        for block in BLOCKS:
            away_x, away_y, above = np.subtract((x, y, z), env.block(block))
            if block != step.target and math.hypot(away_x, away_y) < LEAVE_RADIUS and above < LEAVE_HEIGHT:
                return 0.0, 0.0, CEILING if opening >= OPENED else 0.0, OPEN
    handle_x, handle_y, _ = env.where("handle")
    if step.skill == "push" and x < handle_x + PASS_HANDLE and abs(y - handle_y) < HANDLE_LANE:
        to_x, to_y, _ = push(env.hand(), env.where(step.target))[:3]
        return *approach(to_x, to_y, HANDLE_HEIGHT - z), CLOSED
    return None


def _place(env: Workbench, place: str) -> Hand:
    """Carry the held block over its place, lower it and let it go; with nothing in the hand, open, rise."""
    held = env.held()
    if held is None or held == place:
        return 0.0, 0.0, CEILING if held is None else 0.0, OPEN
    x, y, z = env.block(held)
    to_x, to_y, to_z = env.where(place)
    radius, height = RELEASE.get(place, RELEASE_ON_BLOCK)
    if place in BLOCKS:
        to_z += 2 * BLOCK_HALF
    dx, dy, above = to_x - x, to_y - y, z - to_z
    distance = math.hypot(dx, dy)
    if distance <= radius and above <= height:
        return 0.0, 0.0, 0.0, OPEN
    slower = min(1.0, CARRY / max(distance, 1e-9))
    keep = PLACE_ABOVE + funnel(distance - radius + NARROW)
    return *approach(slower * dx, slower * dy, keep - above), CLOSED
