"""A simulated tabletop robot: a parallel gripper over four coloured blocks, commanded in words.

All four blocks lie in every scene, so the picture alone never tells the task. Table frame: x points away from
the robot, y to its left, z up; the origin lies on the table top [m].
"""

# mujoco ships no type information for its compiled names.
# pyright: reportAttributeAccessIssue=false

from pathlib import Path
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla.tabletop.commands import COLOURS, GOALS, Goal
from vla.tabletop.drawing import apply, close, renderer
from vla.tabletop.looks import PLAIN, Look
from vla_runtime.spec import Dimension

SCENE = Path(__file__).with_name("tabletop.xml")
CAMERA = "front"
CONTROL_HZ = 10.0
EPISODE_STEPS = 50

# Where the point between the fingertips may go [m].
WORKSPACE_LOW = (-0.22, -0.22, 0.015)
WORKSPACE_HIGH = (0.18, 0.22, 0.25)
# The largest motion in one control step, on each axis [m].
STEP_LIMIT = 0.03
# How far each finger opens from the middle [m].
FINGER_TRAVEL = 0.04
BLOCK_HALF = 0.025

# The measured hand may overshoot the workspace a little.
STATE = (
    Dimension(name="hand_x", unit="m", low=-0.24, high=0.20),
    Dimension(name="hand_y", unit="m", low=-0.24, high=0.24),
    Dimension(name="hand_z", unit="m", low=0.0, high=0.27),
    Dimension(name="gripper_opening", unit="1", low=0.0, high=1.0),
)
ACTION = (
    Dimension(name="delta_x", unit="m", low=-STEP_LIMIT, high=STEP_LIMIT),
    Dimension(name="delta_y", unit="m", low=-STEP_LIMIT, high=STEP_LIMIT),
    Dimension(name="delta_z", unit="m", low=-STEP_LIMIT, high=STEP_LIMIT),
    Dimension(name="gripper", unit="1", low=-1.0, high=1.0),
)
ACTION_LOW = np.array([dimension.low for dimension in ACTION], np.float32)
ACTION_HIGH = np.array([dimension.high for dimension in ACTION], np.float32)

# When a task has happened to a block [m].
REACH_RADIUS = 0.025
REACH_HEIGHT = 0.035
LIFT_HEIGHT = 0.05
PUSH_DISTANCE = 0.06

# Another block counts as disturbed when it is this far from where it lay [m].
DISTURBED = 0.01

# The scene at reset [m]: blocks stand in lanes along x, so that each can be grasped and pushed.
BLOCK_X = (-0.11, 0.05)
BLOCK_Y = (-0.17, 0.17)
BLOCK_LANE = 0.088
HAND_LOW = (-0.12, -0.14, 0.14)
HAND_HIGH = (0.08, 0.14, 0.22)

# Layout of the generalised positions: hand x, y, z, left and right finger, then seven numbers a block.
_FINGER = 3
_BLOCKS = 5
_BLOCK_STRIDE = 7
_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION


class Snapshot(NamedTuple):
    """The full simulator state of one moment, with the episode's bookkeeping."""

    physics: NDArray[np.float64]
    start: NDArray[np.float64]  # float64 [4, 3], where the blocks lay at reset [m]
    goal: Goal
    steps: int
    first: str | None


class Robot:
    """The hand, and blocks that it can move: what every scene of the simulator has.

    Not thread-safe: one simulator belongs to one thread.
    """

    control_hz = CONTROL_HZ

    def __init__(self, scene: str, blocks: tuple[str, ...]) -> None:
        """Compile a scene.

        Args:
            scene: MJCF with the hand, its camera and the blocks of `tabletop.xml`
            blocks: names of the blocks, in the order of their joints, before all joints but the hand's
        """
        self._model = mujoco.MjModel.from_xml_string(scene)
        self._data = mujoco.MjData(self._model)
        self._view = mujoco.MjData(self._model)  # what is drawn: a copy, so that drawing leaves no trace
        self._renderers: dict[int, mujoco.Renderer] = {}
        self._plain = mujoco.MjModel.from_xml_string(scene)  # what looks are made from
        self._look = PLAIN
        self._names = blocks
        self._substeps = round(1 / (CONTROL_HZ * self._model.opt.timestep))
        if abs(self._substeps * self._model.opt.timestep * CONTROL_HZ - 1) > 1e-9:
            raise ValueError(f"timestep {self._model.opt.timestep} s does not divide 1 / {CONTROL_HZ} Hz")

    def state(self) -> NDArray[np.float32]:
        """Measure the robot: float32 [4] as in ``STATE``; the hand is the point between its fingertips."""
        return np.array(self.hand(), np.float32)

    def blocks(self) -> NDArray[np.float32]:
        """Positions of the blocks' centres, in the order of their names: float32 [N, 3] [m]."""
        count = len(self._names)
        poses = self._data.qpos[_BLOCKS : _BLOCKS + count * _BLOCK_STRIDE].reshape(count, _BLOCK_STRIDE)
        return poses[:, :3].astype(np.float32)

    def block(self, name: str) -> tuple[float, float, float]:
        """Position of one block's centre [m]."""
        begin = _BLOCKS + self._names.index(name) * _BLOCK_STRIDE
        x, y, z = self._data.qpos[begin : begin + 3].tolist()
        return x, y, z

    def hand(self) -> tuple[float, float, float, float]:
        """The unrounded numbers behind ``state``, cheaply: x, y, z [m] and the opening in [0, 1]."""
        x, y, z, left, right = self._data.qpos[:_BLOCKS].tolist()
        return x, y, z, min(max((left + right) / (2 * FINGER_TRAVEL), 0.0), 1.0)

    def render(self, size: int = 96) -> NDArray[np.uint8]:
        """Draw what the camera ``front`` sees: uint8 [size, size, 3] RGB; ``size`` up to 640 [pixels]."""
        if size not in self._renderers:
            self._renderers[size] = renderer(self._model, size)
        drawn = self._renderers[size]
        self._view.qpos[:] = self._data.qpos
        mujoco.mj_kinematics(self._model, self._view)
        mujoco.mj_camlight(self._model, self._view)
        drawn.update_scene(self._view, camera=CAMERA)
        return drawn.render()

    @property
    def look(self) -> Look:
        """How the scene is drawn; it stays through `reset` until it is set again."""
        return self._look

    @look.setter
    def look(self, look: Look) -> None:
        if look != self._look:
            apply(self._model, self._plain, look, CAMERA)
            self._look = look

    def close(self) -> None:
        """Free the rendering contexts; the simulation itself stays usable."""
        close(self._renderers.values())
        self._renderers.clear()

    def _lay(self, hand: ArrayLike, blocks: ArrayLike) -> None:
        """Set all to rest: the hand, open, at float [3] and the blocks upright at float [N, 3] [m]."""
        data = self._data
        mujoco.mj_resetData(self._model, data)
        data.qpos[:3] = hand
        data.qpos[_FINGER:_BLOCKS] = FINGER_TRAVEL
        data.ctrl[:] = data.qpos[:_BLOCKS]
        for index, position in enumerate(np.asarray(blocks)):
            begin = _BLOCKS + index * _BLOCK_STRIDE
            data.qpos[begin : begin + _BLOCK_STRIDE] = [*position, 1, 0, 0, 0]

    def _move(self, action: ArrayLike) -> None:
        """Move for one control step.

        ``action``: float [4], ``delta_x, delta_y, delta_z`` [m] and the gripper command, -1 open to 1 closed;
        clipped to the bounds of ``ACTION``. Raises ``ValueError`` for a wrong shape or a non-finite number.
        """
        command = np.asarray(action, np.float64)
        if command.shape != (4,) or not np.isfinite(command).all():
            raise ValueError(
                f"action must be 4 finite numbers, got shape {command.shape}: {command.tolist()}"
            )
        servo = self._data.ctrl
        for axis in range(3):
            move = min(max(command[axis], -STEP_LIMIT), STEP_LIMIT)
            servo[axis] = min(max(servo[axis] + move, WORKSPACE_LOW[axis]), WORKSPACE_HIGH[axis])
        servo[_FINGER:_BLOCKS] = FINGER_TRAVEL * (1 - min(max(command[3], -1.0), 1.0)) / 2
        mujoco.mj_step(self._model, self._data, self._substeps)

    def _physics(self) -> NDArray[np.float64]:
        """Return all that the simulation goes on from."""
        physics = np.empty(mujoco.mj_stateSize(self._model, _PHYSICS))
        mujoco.mj_getState(self._model, self._data, physics, _PHYSICS)
        return physics

    def _return_to(self, physics: NDArray[np.float64]) -> None:
        """Go back to a moment that `_physics` returned, bit for bit."""
        mujoco.mj_setState(self._model, self._data, physics, _PHYSICS)


class Tabletop(Robot):
    """The simulated robot over four blocks.

    Call ``reset`` first. Nothing but ``reset`` and ``step`` moves the simulation; rendering never does.
    """

    def __init__(self) -> None:
        super().__init__(SCENE.read_text(), COLOURS)
        self._start = np.zeros((len(COLOURS), 3))
        self._goal = GOALS[0]
        self._steps = 0
        self._first: str | None = None

    @property
    def goal(self) -> Goal:
        """The commanded goal of this episode."""
        return self._goal

    @property
    def steps(self) -> int:
        """Control steps since ``reset``."""
        return self._steps

    @property
    def success(self) -> bool:
        """Whether the commanded task happened to the commanded block before any other."""
        return self._first == self._goal.colour

    @property
    def over(self) -> bool:
        """Whether the episode has ended: an outcome, or ``EPISODE_STEPS`` steps."""
        return self._first is not None or self._steps >= EPISODE_STEPS

    def reset(self, seed: int, goal: Goal | None = None) -> None:
        """Begin an episode; the whole scene follows from ``seed``, and the goal too unless it is given.

        The scene does not depend on whether ``goal`` is given. Raises ``ValueError`` for an unknown goal.
        """
        if goal is not None and goal not in GOALS:
            raise ValueError(f"unknown goal {tuple(goal)}; valid: {', '.join(f'{t} {c}' for t, c in GOALS)}")
        random = np.random.default_rng(seed)
        drawn = GOALS[random.integers(len(GOALS))]
        hand = random.uniform(HAND_LOW, HAND_HIGH)
        self._start = lay_blocks(random, len(COLOURS), BLOCK_X, BLOCK_Y)
        self._lay(hand, self._start)
        self._goal = drawn if goal is None else Goal(*goal)
        self._steps = 0
        self._first = None

    def step(self, action: ArrayLike) -> bool:
        """Move for one control step; returns whether the episode is over.

        ``action``: float [4], ``delta_x, delta_y, delta_z`` [m] and the gripper command, -1 open to 1 closed;
        clipped to the bounds of ``ACTION``. Raises ``ValueError`` for a wrong shape or a non-finite number.
        """
        self._move(action)
        self._steps += 1
        if self._first is None:
            self._first = self._judge()
        return self.over

    def happens(self, goal: Goal) -> bool:
        """Whether ``goal`` is fulfilled at this moment, whatever is commanded."""
        x, y, z = self.block(goal.colour)
        start = self._start[COLOURS.index(goal.colour)]
        if goal.task == "lift":
            return bool(z - start[2] >= LIFT_HEIGHT)
        if goal.task == "push":
            return bool(x - start[0] >= PUSH_DISTANCE)
        hand_x, hand_y, hand_z, _ = self.hand()
        near = (hand_x - x) ** 2 + (hand_y - y) ** 2 <= REACH_RADIUS**2
        return near and hand_z - z <= REACH_HEIGHT

    def outcome(self) -> str | None:
        """The colour of the block that the commanded task first happened to; ``None`` until then."""
        return self._first

    def disturbed(self) -> list[str]:
        """The colours of the blocks that no goal was about, and that are not where they lay at `reset`."""
        moved = np.linalg.norm(self.blocks() - self._start, axis=1) > DISTURBED
        return [
            colour for colour, far in zip(COLOURS, moved, strict=True) if far and colour != self._goal.colour
        ]

    def snapshot(self) -> Snapshot:
        """Keep this moment, to ``restore`` it later, as often as wanted."""
        return Snapshot(self._physics(), self._start, self._goal, self._steps, self._first)

    def restore(self, snapshot: Snapshot) -> None:
        """Return to the moment of ``snapshot``, bit for bit."""
        self._return_to(snapshot.physics)
        _, self._start, self._goal, self._steps, self._first = snapshot

    def reflect(self) -> None:
        """Mirror the scene in the plane y = 0, movement included: reflecting twice restores every number."""
        data = self._data
        for numbers in (data.qpos, data.qvel, data.qacc_warmstart, data.ctrl):
            numbers[1] *= -1
            numbers[_FINGER:_BLOCKS] = numbers[[_FINGER + 1, _FINGER]]
        poses = data.qpos[_BLOCKS:].reshape(len(COLOURS), _BLOCK_STRIDE)
        poses[:, [1, 4, 6]] *= -1  # y, and the rotations about x and z
        for numbers in (data.qvel, data.qacc_warmstart):
            numbers[_BLOCKS:].reshape(len(COLOURS), 6)[:, [1, 3, 5]] *= -1
        self._start = self._start * (1, -1, 1)

    def _judge(self) -> str | None:
        """Which block the commanded task happens to now; in a tie a wrong one counts."""
        task, wanted = self._goal
        hit = [colour for colour in COLOURS if self.happens(Goal(task, colour))]
        return min(hit, key=lambda colour: colour == wanted, default=None)


def lay_blocks(
    random: np.random.Generator, count: int, along: tuple[float, float], across: tuple[float, float]
) -> NDArray[np.float64]:
    """Draw float64 [count, 3] block positions [m] between these x and y, no two in one lane."""
    while True:
        y = random.uniform(*across, count)
        if np.diff(np.sort(y)).min() >= BLOCK_LANE:
            break
    x = random.uniform(*along, count)
    return np.stack([x, y, np.full(count, BLOCK_HALF)], axis=1)
