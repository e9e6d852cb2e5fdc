"""The workbench: the tabletop's hand over three blocks, a tray, a drawer and two zones.

The drawer slides along x and is opened by its handle. Tray and cabinet stand still; blocks, zones and hand
lie elsewhere in every scene. Table frame as in `vla.tabletop.simulator`.
"""

# mujoco ships no type information for its compiled names.
# pyright: reportAttributeAccessIssue=false

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla.tabletop import simulator as tabletop
from vla.tabletop.expert import OPENED, Point, around, holds
from vla.tabletop.simulator import (
    BLOCK_HALF,
    HAND_HIGH,
    HAND_LOW,
    LIFT_HEIGHT,
    PUSH_DISTANCE,
    REACH_HEIGHT,
    REACH_RADIUS,
    Robot,
    lay_blocks,
)
from vla.workbench.commands import BLOCKS, NOTHING, TASKS, ZONES, Aim, Step, Task

SCENE = Path(__file__).with_name("workbench.xml")
# What a step can have as its target, in the order of `things`.
THINGS = (*BLOCKS, "tray", "drawer", "handle", *ZONES)

# Where the blocks lie at reset [m].
BLOCK_X = (0.055, 0.10)
BLOCK_Y = (-0.17, 0.17)
# Where the zones' centres lie, one here and one there, and how far from it at most [m].
ZONE_PLACES = ((-0.16, -0.005), (-0.06, -0.005))
ZONE_SHIFT = (0.015, 0.022)
# Control steps that a task has, for each of its steps.
STEP_LIMIT = 50

# The drawer is open from so far [m]; some episodes begin with an open one, drawn from `OPENINGS` [m].
OPEN_DISTANCE = 0.08
OPENINGS = (0.092, 0.099)
# A block lies in the tray or in the drawer when its centre is within so far of their middle, x and y, and
# below this height; on another block when it is within so far across, and this much above its centre [m].
INSIDE = {"tray": (0.034, 0.034, 0.045), "drawer": (0.032, 0.036, 0.050)}
ON_TOP = (0.022, 0.022, 0.042, 0.058)
# How far behind the inner side of its front the drawer holds a block [m]; the height of its floor and of the
# tray's [m].
DRAWER_DEPTH = 0.050
FLOOR = {"tray": 0.004, "drawer": 0.008}
# A held block is carried to its place, not picked any more, this near above it [m].
OVER_PLACE = 0.045
# The hand is over a zone within this distance across and below this height [m].
ZONE_RADIUS, ZONE_HEIGHT = 0.022, 0.085
# What is clearly done, by skill [m]: the drawer is so far open; the block is so high; the hand is so near
# across and no higher above; the block is here, wherever it lay before, which can't be seen. A policy ends a
# motion a little before its demonstrations do: were they to end where success begins, it would fail by
# millimetres.
CLEARLY_OPEN, CLEARLY_LIFTED = 0.09, 0.065
CLEARLY_REACHED, CLEARLY_OVER = (0.015, 0.026), (0.013, 0.070)
CLEARLY_PUSHED = BLOCK_X[1] + PUSH_DISTANCE
# How near the hand is then, across and above, by skill and whether clearly [m].
_NEAR = {
    ("reach", False): (REACH_RADIUS, REACH_HEIGHT),
    ("reach", True): CLEARLY_REACHED,
    ("navigate", False): (ZONE_RADIUS, ZONE_HEIGHT),
    ("navigate", True): CLEARLY_OVER,
}


class Snapshot(NamedTuple):
    """The full simulator state of one moment, with the episode's bookkeeping."""

    physics: NDArray[np.float64]
    start: NDArray[np.float64]  # float64 [3, 3], where the blocks lay at reset [m]
    task: Task
    steps: int


class Workbench(Robot):
    """The simulated robot at the workbench. Call ``reset`` first."""

    def __init__(self) -> None:
        super().__init__(scene(), BLOCKS)
        self._drawer = self._model.joint("drawer").qposadr[0]
        self._start = np.zeros((len(BLOCKS), 3))
        self._task = TASKS[0]
        self._steps = 0

    @property
    def task(self) -> Task:
        """What this episode asks for."""
        return self._task

    @property
    def steps(self) -> int:
        """Control steps since ``reset``."""
        return self._steps

    def reset(self, seed: int, task: Task, *, opened: bool = False) -> None:
        """Begin an episode; the scene follows from ``seed`` alone.

        Args:
            seed: of the scene
            task: what is asked for
            opened: whether the drawer is open already

        Raises:
            ValueError: there is no such task.
        """
        if task not in TASKS:
            raise ValueError(f"unknown task {task}")
        random = np.random.default_rng([seed, 1])
        hand = random.uniform(HAND_LOW, HAND_HIGH)
        self._start = lay_blocks(random, len(BLOCKS), BLOCK_X, BLOCK_Y)
        places = random.permutation(ZONE_PLACES) + random.uniform(-1, 1, (len(ZONES), 2)) * ZONE_SHIFT
        for zone, place in zip(ZONES, places, strict=True):
            self._model.geom(zone).pos[:] = (*place, 0.001)
        distance = random.uniform(*OPENINGS)
        self._lay(hand, self._start)
        self._data.qpos[self._drawer] = distance if opened else 0.0
        self._task, self._steps = task, 0

    def step(self, action: ArrayLike) -> None:
        """Move for one control step; ``action`` as in `Tabletop.step`."""
        self._move(action)
        self._steps += 1

    @property
    def start(self) -> NDArray[np.float64]:
        """Where the blocks lay at reset: float64 [3, 3] [m]."""
        return self._start

    def opening(self) -> float:
        """How far the drawer is open [m]."""
        return float(self._data.qpos[self._drawer])

    def where(self, thing: str) -> Point:
        """Return where a thing of `THINGS` is [m]; of tray and drawer, where a block would lie in them."""
        if thing in BLOCKS:
            return self.block(thing)
        if thing in ZONES:
            x, y, z = self._model.geom(thing).pos.tolist()
            return x, y, z
        x, y, _ = self._model.body("tray" if thing == "tray" else "drawer").pos.tolist()
        if thing == "tray":
            return x, y, FLOOR["tray"] + BLOCK_HALF
        x += self.opening()
        if thing == "drawer":
            return x - DRAWER_DEPTH, y, FLOOR["drawer"] + BLOCK_HALF
        x_handle, y_handle, z_handle = self._model.body("handle").pos.tolist()
        return x + x_handle, y + y_handle, z_handle

    def things(self) -> NDArray[np.float32]:
        """Return where all of `THINGS` are: float32 [8, 3] [m]."""
        return np.array([self.where(thing) for thing in THINGS], np.float32)

    def held(self) -> str | None:
        """The block that the fingers hold."""
        return next((block for block in BLOCKS if holds(self.hand(), self.block(block))), None)

    def lies(self, block: str, place: str) -> bool:
        """Whether a block lies in the tray or the drawer, or on another block, and is let go."""
        x, y, z = np.subtract(self.block(block), self.where(place))
        if place in BLOCKS:
            wide, deep, low, high = ON_TOP
            there = abs(x) <= wide and abs(y) <= deep and low <= z <= high
        else:
            wide, deep, high = INSIDE[place]
            there = abs(x) <= wide and abs(y) <= deep and self.block(block)[2] <= high
        hand = self.hand()
        return bool(there and (hand[3] >= OPENED or not around(hand, self.block(block))))

    def achieved(self, aim: Aim, *, clearly: bool = False) -> bool:
        """Whether an aim is achieved at this moment; see `happens`."""
        if aim.verb == "put":
            return self.lies(aim.thing, aim.place)
        return self.happens(Step(aim.verb, aim.thing), clearly=clearly)

    def happens(self, step: Step, *, clearly: bool = False) -> bool:
        """Whether a step is done at this moment; `place` is when any block lies there.

        With `clearly`: so far that there is no doubt, which is what demonstrations go on to.
        """
        if step.skill == "place":
            return any(self.lies(block, step.target) for block in BLOCKS if block != step.target)
        if step.skill == "open":
            return self.opening() >= (CLEARLY_OPEN if clearly else OPEN_DISTANCE)
        if step == NOTHING:
            return True
        x, y, z = self.where(step.target)
        if step.skill == "push":
            start = self._start[BLOCKS.index(step.target)][0]
            return x >= (CLEARLY_PUSHED if clearly else start + PUSH_DISTANCE)
        if step.skill == "pick":
            lifted = CLEARLY_LIFTED if clearly else LIFT_HEIGHT
            return self.held() == step.target and z - BLOCK_HALF >= lifted
        hand_x, hand_y, hand_z, _ = self.hand()
        radius, height = _NEAR[step.skill, clearly]
        return (hand_x - x) ** 2 + (hand_y - y) ** 2 <= radius**2 and hand_z - z <= height

    def remaining(self, task: Task | None = None, *, clearly: bool = False) -> tuple[Step, ...]:
        """Return the steps that a task, or this episode's, still needs from here; none when it is done.

        With `clearly`, a step is needed until it is clearly done: see `happens`.
        """
        return tuple(step for aim in task or self._task for step in self.needed(aim, clearly=clearly))

    def needed(self, aim: Aim, *, clearly: bool = False) -> tuple[Step, ...]:
        """Return the steps that an aim still needs from here; none when it is achieved."""
        if self.achieved(aim, clearly=clearly):
            return ()
        if aim.verb != "put":
            return (Step(aim.verb, aim.thing),)
        steps = (Step("place", aim.place),)
        if not self._carried(aim, clearly=clearly):
            steps = (Step("pick", aim.thing), *steps)
        if aim.place == "drawer" and not self.happens(Step("open", "drawer"), clearly=clearly):
            steps = (Step("open", "drawer"), *steps)
        return steps

    def snapshot(self) -> Snapshot:
        """Keep this moment, to ``restore`` it later, as often as wanted."""
        return Snapshot(self._physics(), self._start, self._task, self._steps)

    def restore(self, snapshot: Snapshot) -> None:
        """Return to the moment of ``snapshot``, bit for bit."""
        self._return_to(snapshot.physics)
        _, self._start, self._task, self._steps = snapshot

    def _carried(self, aim: Aim, *, clearly: bool) -> bool:
        """Whether the block is in the air, held or just let go above its place."""
        x, y, z = np.subtract(self.block(aim.thing), self.where(aim.place))
        over = x**2 + y**2 <= OVER_PLACE**2 and z > 0
        if self.held() != aim.thing:
            return False
        return over or self.happens(Step("pick", aim.thing), clearly=clearly)


def scene() -> str:
    """Return the scene as MJCF: that of the tabletop, without its fourth block, and what `SCENE` adds."""
    root = ElementTree.parse(tabletop.SCENE).getroot()
    for part in ElementTree.parse(SCENE).getroot():
        whole = root.find(part.tag)
        if whole is None:
            raise ValueError(f"{tabletop.SCENE.name} has no {part.tag}")
        whole.attrib.update(part.attrib)
        whole.extend(part)
        for block in whole.findall("body[@name='yellow']"):
            whole.remove(block)
    return ElementTree.tostring(root, "unicode")
