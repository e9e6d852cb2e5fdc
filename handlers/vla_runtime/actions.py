"""Action spaces: the policy's normalised output to a chunk of actions in physical units, and back."""

from dataclasses import dataclass

import numpy as np

from vla_runtime.safety import SafetyReport
from vla_runtime.spec import ActionSpace, Vector


@dataclass(frozen=True)
class ActionChunk:
    """What the robot is to do next."""

    # float32 [T, A], physical units.
    actions: np.ndarray
    space: ActionSpace
    # What the safety limits did to the actions.
    safety: SafetyReport
    # In [0, 1]; None where the policy gives none.
    confidence: float | None
    # float32 [C, h, w], where the command looks; None where the policy gives none.
    attention: np.ndarray | None


def normalise(values: np.ndarray, vector: Vector) -> np.ndarray:
    """Physical units to the policy's: float32 [..., dimensions] to the same shape."""
    return ((values - vector.shift) / vector.scale).astype(np.float32)


def unnormalise(values: np.ndarray, vector: Vector) -> np.ndarray:
    """The policy's units to physical ones, the inverse of `normalise`: float32 [..., dimensions]."""
    return (values * vector.scale + vector.shift).astype(np.float32)
