"""What openpi's code does between a robot's numbers and a policy's, by robot: no checkpoint says it.

See openpi's `policies/{aloha,droid,libero}_policy.py`, and `training/config.py` for who uses which.
"""

from dataclasses import dataclass, replace

import msgspec
import numpy as np

from export.errors import ExportError
from export.foreign.facts import relative_to_state
from vla_runtime.spec import ContinuousSpace, Dimension, Statistics, Vector

# ALOHA's gripper as an action: openpi's is an angle from 0.5476 rad on, ALOHA's is 0 to 1 between two angles.
GRIPPER_ZERO = 0.5476
GRIPPER_CLOSED, GRIPPER_OPEN = -0.6213, 1.4910


@dataclass(frozen=True)
class Robot:
    """A robot as openpi's policies know it."""

    # openpi's training configurations that use it so.
    configs: str
    # In the policy's order; cameras that a robot lacks show nothing, and are left out.
    cameras: tuple[str, ...]
    # Dimensions of its state, and of an action.
    state: int
    action: int
    # Actions up to here are differences from the state's dimension of the same place, but for the grippers.
    relative: int = 0
    grippers: tuple[int, ...] = ()
    # Places of joints that turn the other way in the policy.
    mirrored: tuple[int, ...] = ()
    # Whether the policy's grippers are angles, and ALOHA's are not.
    angular: bool = False
    # Whether a pi0.5 reads the state in its prompt.
    prompt: bool = True

    def is_relative(self, place: int) -> bool:
        """Whether an action's dimension is a difference from the state."""
        return place < self.relative and place not in self.grippers


_ALOHA = Robot(
    "pi0_aloha, pi0_aloha_towel, pi0_aloha_pen_uncap",
    cameras=("cam_high", "cam_left_wrist", "cam_right_wrist"),
    state=14,
    action=14,
    relative=14,
    grippers=(6, 13),
    mirrored=(1, 2, 8, 9),
    angular=True,
)
_DROID = Robot(
    "pi0_droid, pi05_droid",
    cameras=("exterior_image_1_left", "wrist_image_left"),
    state=8,
    action=8,
    grippers=(7,),
)
_LIBERO = Robot(
    "pi05_libero", cameras=("image", "wrist_image"), state=8, action=7, grippers=(6,), prompt=False
)
ROBOTS = {
    "aloha": _ALOHA,
    "aloha_sim": replace(_ALOHA, configs="pi0_aloha_sim", cameras=("cam_high",), relative=0),
    "droid": _DROID,
    "droid_joint_position": replace(_DROID, configs="pi05_full_droid_finetune", relative=8),
    "libero": _LIBERO,
    "libero_delta": replace(_LIBERO, configs="pi0_libero", relative=7),
}
Range = tuple[tuple[float, ...], tuple[float, ...]]


def robot(name: str | None) -> Robot:
    """Return the robot of a name.

    Raises:
        ExportError: none was given, or it is not known.
    """
    known = ", ".join(f"{name} ({found.configs})" for name, found in ROBOTS.items())
    if name is None:
        raise ExportError(
            "openpi's folder does not say what its code does to a robot's numbers: give --robot, one of, by "
            f"openpi's configurations: {known}"
        )
    if name not in ROBOTS:
        raise ExportError(f"no robot {name!r} is known; known are, by openpi's configurations: {known}")
    return ROBOTS[name]


def state_range(robot: Robot, low: tuple[float, ...], high: tuple[float, ...]) -> Range:
    """Return the range of a state in the robot's numbers, from that in the policy's."""
    first, second = np.array([low, high])
    first, second = _mirrored(robot, first, second)
    if robot.angular:  # by its driver
        first[list(robot.grippers)], second[list(robot.grippers)] = 0.0, 1.0
    return tuple(first.tolist()), tuple(second.tolist())


def action_range(robot: Robot, low: tuple[float, ...], high: tuple[float, ...], state: Range) -> Range:
    """Return the same of an action; where it is a difference from the state, the state's."""
    first, second = _mirrored(robot, *np.array([low, high]))
    if robot.angular:
        places = list(robot.grippers)
        first[places], second[places] = _from_angle(first[places]), _from_angle(second[places])
    for place in filter(robot.is_relative, range(robot.action)):
        first[place], second[place] = state[0][place], state[1][place]
    return tuple(first.tolist()), tuple(second.tolist())


def relative_to(robot: Robot, action: tuple[Dimension, ...], state: Vector) -> tuple[Dimension, ...]:
    """Return an action's dimensions, with those marked that are differences from the state.

    Raises:
        ExportError: the names file contradicts it.
    """
    return relative_to_state(action, filter(robot.is_relative, range(robot.action)), state.names)


def robot_state(robot: Robot, state: Vector) -> Vector:
    """Return the state of a policy in the robot's numbers; the module mirrors joints and reads grippers."""
    if not robot.angular:
        return state
    mean = tuple(sign * value for sign, value in zip(signs(robot), state.statistics.mean, strict=True))
    return msgspec.structs.replace(
        state,
        statistics=Statistics(mean=mean, std=state.statistics.std),
        passthrough=tuple(state.names[place] for place in robot.grippers),
    )


def robot_action(robot: Robot, action: ContinuousSpace) -> ContinuousSpace:
    """Return the actions of a policy in the robot's numbers; the module mirrors joints."""
    if not robot.angular:
        return action
    mean = np.array(signs(robot)) * action.statistics.mean
    # Both statistics change, and not the epsilon: it moves into the deviation.
    std, places = np.array(action.statistics.std) + action.epsilon, list(robot.grippers)
    mean[places] = _from_angle(mean[places])
    std[places] /= GRIPPER_OPEN - GRIPPER_CLOSED
    return msgspec.structs.replace(
        action, statistics=Statistics(mean=tuple(mean.tolist()), std=tuple(std.tolist())), epsilon=0.0
    )


def signs(robot: Robot) -> tuple[float, ...]:
    """Return -1 for a mirrored joint, 1 for all else, of each dimension."""
    return tuple(-1.0 if place in robot.mirrored else 1.0 for place in range(robot.action))


def _mirrored(robot: Robot, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = np.isin(np.arange(len(low)), robot.mirrored)
    return np.where(places, -high, low), np.where(places, -low, high)


def _from_angle(values: np.ndarray) -> np.ndarray:
    return (values + GRIPPER_ZERO - GRIPPER_CLOSED) / (GRIPPER_OPEN - GRIPPER_CLOSED)
