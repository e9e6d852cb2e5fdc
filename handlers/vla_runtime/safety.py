"""The last step before an action leaves: finite, inside its bounds, no jump between consecutive actions."""

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vla_runtime.errors import UnsafeAction
from vla_runtime.spec import ContinuousSpace, DiscreteSpace, Safety

# Share of a dimension's range that is rounding, moved back without a word.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class SafetyReport:
    """What the limits did to a chunk."""

    status: Literal["ok", "clamped", "held"]
    # One line a broken limit: which dimension, by how much.
    violations: tuple[str, ...]


@dataclass(frozen=True)
class Robot:
    """What is known of the robot in each dimension of an action, in physical units; NaN where nothing is."""

    # float32 [A], what the reported state says.
    measured: np.ndarray
    # float32 [A], what it does last before the chunk.
    previous: np.ndarray


def enforce(
    actions: np.ndarray,
    confidence: float | None,
    robot: Robot,
    space: ContinuousSpace,
    safety: Safety,
) -> tuple[np.ndarray, SafetyReport]:
    """Apply the spec's limits to one chunk.

    Within the limits the chunk is returned as it came. Otherwise the spec's mode decides: `clamp` moves every
    value to the nearest allowed one, `hold` replaces the chunk by standing still, `reject` refuses. A chunk
    that is not finite or not confident enough can't be clamped: it is held where the spec says how, else
    refused.

    Args:
        actions: float32 [T, A], physical units
        confidence: in [0, 1], None where the policy gives none
        robot: where it is, and what it does before the chunk
        space: the bounds
        safety: the other limits, and what to do beyond them

    Raises:
        UnsafeAction: the spec says to reject, or there is nothing safe to send instead.
    """
    fatal = _unclampable(actions, confidence, space, safety)
    limited = actions if fatal else _limit(actions, robot, space, safety)
    violations = fatal or _differences(actions, limited, space)
    if not violations:
        return limited, SafetyReport("ok", ())
    if safety.mode == "clamp" and not fatal:
        return limited, SafetyReport("clamped", violations)
    held = _still(robot, space, safety)
    if safety.mode == "reject" or held is None:
        raise _unsafe(violations)
    return np.broadcast_to(held, actions.shape), SafetyReport("held", violations)


def enforce_discrete(
    probabilities: np.ndarray, confidence: float, space: DiscreteSpace, safety: Safety
) -> tuple[np.ndarray, np.ndarray, SafetyReport]:
    """Choose the likeliest symbolic actions and apply the spec's limits.

    There is nothing to clamp: a chunk that is not finite or not confident enough is held where a safe action
    is declared, else refused.

    Args:
        probabilities: float32 [T, V], NaN where the policy's logits were not finite
        confidence: in [0, 1]
        space: the vocabulary
        safety: the limits, and what to do beyond them

    Returns:
        the chosen actions int64 [T], their probabilities float32 [T, V] (all on the held action when held),
        and what was done

    Raises:
        UnsafeAction: the spec says to reject, or there is nothing safe to send instead.
    """
    unknown = () if np.isfinite(probabilities).all() else ("the logits are not finite",)
    violations = (*unknown, *_unconfident(confidence, safety))
    if not violations:
        return probabilities.argmax(-1), probabilities, SafetyReport("ok", ())
    if safety.mode == "reject" or safety.hold_action is None:
        raise _unsafe(violations)
    hold = space.index(str(safety.hold_action))
    held = np.full(len(probabilities), hold)
    return held, np.eye(space.width, dtype=np.float32)[held], SafetyReport("held", violations)


def _unsafe(violations: tuple[str, ...]) -> UnsafeAction:
    return UnsafeAction(None, f"the policy's action is outside its safety limits: {'; '.join(violations)}")


def _still(robot: Robot, space: ContinuousSpace, safety: Safety) -> np.ndarray | None:
    """Return the action that stands still, float32 [A]; None where the spec does not say what that is.

    In each dimension: the declared value, else no change and no speed, else the reported pose, else what the
    robot does already.
    """
    declared = safety.hold_action if isinstance(safety.hold_action, tuple) else (None,) * space.width
    resting = [0.0 if d.meaning in ("delta", "velocity") else None for d in space.dimensions]
    known = [rest if value is None else value for value, rest in zip(declared, resting, strict=True)]
    poses = np.where(np.isfinite(robot.measured), robot.measured, robot.previous)
    held = np.array([pose if value is None else value for value, pose in zip(known, poses, strict=True)])
    return np.clip(held, space.low, space.high).astype(np.float32) if np.isfinite(held).all() else None


def _unclampable(
    actions: np.ndarray, confidence: float | None, space: ContinuousSpace, safety: Safety
) -> tuple[str, ...]:
    columns = zip(space.names, actions.T, strict=True)
    found = [f"{name} is not finite" for name, values in columns if not np.isfinite(values).all()]
    return (*found, *_unconfident(confidence, safety))


def _unconfident(confidence: float | None, safety: Safety) -> tuple[str, ...]:
    """A confidence that is missing or no number is never enough."""
    if safety.min_confidence is None:
        return ()
    if confidence is not None and confidence >= safety.min_confidence:
        return ()
    stated = "missing" if confidence is None else f"{confidence:.3f}"
    return (f"confidence {stated} is below {safety.min_confidence}",)


def _limit(actions: np.ndarray, robot: Robot, space: ContinuousSpace, safety: Safety) -> np.ndarray:
    limited = np.clip(actions, space.low, space.high)
    if safety.max_step is None:
        return limited
    steps = np.array([np.inf if step is None else step for step in safety.max_step], np.float32)
    absolute = np.array([dimension.meaning == "absolute" for dimension in space.dimensions])
    # From the reported pose, else from the previous action; without either the first action is free.
    posed = absolute & np.isfinite(robot.measured)
    before = np.where(posed, robot.measured, robot.previous)
    before = np.where(np.isfinite(before), np.clip(before, space.low, space.high), limited[0])
    for previous, action in itertools.pairwise([before, *limited]):
        np.clip(action, previous - steps, previous + steps, out=action)
    return limited


def _differences(actions: np.ndarray, limited: np.ndarray, space: ContinuousSpace) -> tuple[str, ...]:
    excess = np.abs(actions - limited).max(axis=0)  # [A]
    return tuple(
        f"{dimension.name} exceeds its limit by {over:.3g} {dimension.unit}"
        for dimension, over in zip(space.dimensions, excess, strict=True)
        if over > TOLERANCE * (dimension.high - dimension.low)
    )
