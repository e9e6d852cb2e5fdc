"""The last step before an action leaves: finite, within its bounds, no jumps, no place beyond its limits."""

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
    # Share of the values that the policy wanted beyond their bounds; None where it has no such values.
    saturated: float | None = None


@dataclass(frozen=True)
class Robot:
    """What is known of the robot in each dimension of an action, in physical units; NaN where nothing is."""

    # float32 [A], what the reported state says.
    measured: np.ndarray
    # float32 [A], what it does last before the chunk, or before what the chunk chooses.
    previous: np.ndarray
    # Actions at the chunk's beginning that it executes already: only their bounds are checked.
    committed: int = 0


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
    that is not finite, not confident enough or can't keep all limits can't be clamped: it is held where the
    spec says how, else refused.

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
    fatal = fatal or _contradictions(limited, space)
    violations = fatal or _differences(actions, limited, space)
    if not violations:
        return limited, SafetyReport("ok", ())
    if safety.mode == "clamp" and not fatal:
        return limited, SafetyReport("clamped", violations)
    held = _still(robot, space, safety)
    if safety.mode == "reject" or held is None:
        raise _unsafe(violations)
    still = np.broadcast_to(held, actions.shape)
    if safety.hold_keeps and violations == _unconfident(confidence, safety):
        kept = np.isin(space.names, safety.hold_keeps)
        still = np.where(kept, saturate(actions, space), still).astype(np.float32)
    return still, SafetyReport("held", violations)


def wanted_beyond(actions: np.ndarray, space: ContinuousSpace) -> float:
    """Return the share of a chunk's values, float32 [T, A], that lie beyond their bounds."""
    margin = TOLERANCE * (space.high - space.low)
    return float(((actions < space.low - margin) | (actions > space.high + margin)).mean())


def saturate(actions: np.ndarray, space: ContinuousSpace) -> np.ndarray:
    """Cut values at their bounds, float32 [T, A]; one that is not finite stays as it is."""
    return np.where(np.isfinite(actions), np.clip(actions, space.low, space.high), actions)


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
    """Move every action to the nearest one within all limits: float32 [T, A], NaN where none is."""
    limited = np.clip(actions, space.low, space.high)
    if safety.max_step is None and safety.position_limits is None and safety.max_from_state is None:
        return limited
    steps = _column(safety.max_step)
    absolute = np.array([dimension.meaning == "absolute" for dimension in space.dimensions])
    # From the reported pose, else from the previous action; without either the first action is free.
    posed = absolute & np.isfinite(robot.measured)
    before = np.where(posed, robot.measured, robot.previous)
    before = np.where(np.isfinite(before), np.clip(before, space.low, space.high), limited[0])
    places = _Places(robot, space, safety)
    for action in limited[: robot.committed]:
        places.move(action)
        before = action
    for action in limited[robot.committed :]:
        low, high = places.interval(steps)
        low = np.maximum.reduce([low, before - steps, space.low])
        high = np.minimum.reduce([high, before + steps, space.high])
        rounding = TOLERANCE * (space.high - space.low)
        possible = low <= high + rounding
        action[:] = np.where(possible, np.clip(action, np.minimum(low, high), high), np.nan)
        places.move(action)
        before = action
    return limited


class _Places:
    """Where a chunk leads, from the reported state on, in each dimension that has a limit on it."""

    def __init__(self, robot: Robot, space: ContinuousSpace, safety: Safety) -> None:
        meanings = [dimension.meaning for dimension in space.dimensions]
        # What one action of 1 adds to the place; 0 for an absolute action, which is the place.
        rates = {"delta": 1.0, "velocity": 1.0 / space.control_hz}
        self._rate = np.array([rates.get(str(meaning), 0.0) for meaning in meanings])
        self._moving = (self._rate > 0) & np.isfinite(robot.measured)
        known = np.isfinite(robot.measured)
        self._place = np.where(known, robot.measured, 0).astype(np.float64)
        boxes = safety.position_limits or (None,) * space.width
        self._box = np.array([(-np.inf, np.inf) if box is None else box for box in boxes]).T
        far = np.where(known, _column(safety.max_from_state), np.inf)
        self._near = np.array([self._place - far, self._place + far])

    def interval(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and highest next action that keeps to the limits on places: float64 [A] each."""
        # A robot outside its box may stay where it is, or come back.
        low = np.maximum(np.minimum(self._box[0], self._place), self._near[0])
        high = np.minimum(np.maximum(self._box[1], self._place), self._near[1])
        rate = np.where(self._moving, self._rate, 1)
        down, up = self._braked(self._place - low, steps), self._braked(high - self._place, steps)
        return np.where(self._moving, -down / rate, low), np.where(self._moving, up / rate, high)

    def move(self, action: np.ndarray) -> None:
        """Follow one action, float32 [A]."""
        self._place = np.where(self._moving, self._place + self._rate * action, self._place)

    def _braked(self, room: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Return the largest change of place that can still be slowed down within the room, float64 [A].

        With at most `s` less from each action to the next, v + (v - s) + (v - 2s) + ... is at most
        v (v + s) / 2s.
        """
        step = np.where(np.isfinite(steps), steps, 0) * self._rate
        slowed = (step > 0) & np.isfinite(room)
        finite = np.where(slowed, np.maximum(room, 0), 0)
        return np.where(
            slowed, np.minimum(room, np.sqrt(step * step / 4 + 2 * step * finite) - step / 2), room
        )


def _column(limits: tuple[float | None, ...] | None) -> np.ndarray:
    """Return one limit a dimension as float64, infinity where there is none."""
    return np.array([np.inf if limit is None else limit for limit in limits or (None,)])


def _contradictions(limited: np.ndarray, space: ContinuousSpace) -> tuple[str, ...]:
    columns = zip(space.names, limited.T, strict=True)
    return tuple(
        f"{name} can't keep all its limits at once" for name, values in columns if np.isnan(values).any()
    )


def _differences(actions: np.ndarray, limited: np.ndarray, space: ContinuousSpace) -> tuple[str, ...]:
    excess = np.abs(actions - limited).max(axis=0)  # [A]
    return tuple(
        f"{dimension.name} exceeds its limit by {over:.3g} {dimension.unit}"
        for dimension, over in zip(space.dimensions, excess, strict=True)
        if over > TOLERANCE * (dimension.high - dimension.low)
    )
