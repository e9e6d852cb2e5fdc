"""The limits of actions: what a spec may say of them, and which of them contradict each other."""

from typing import Literal

import numpy as np

from vla_runtime.spaces import ContinuousSpace
from vla_runtime.vectors import Dimension, Part, require


class Safety(Part, frozen=True):
    """What is done with an action outside the limits; see `safety.py`."""

    mode: Literal["clamp", "hold", "reject"] = "clamp"
    # Largest change between consecutive actions, one a dimension [action unit]; null: no limit. The
    # first action is limited from the reported state (absolute dimensions that name it), else from the
    # request's `previous`.
    max_step: tuple[float | None, ...] | None = None
    # Where deltas and velocities may lead, [low, high] one a dimension that names its state [its unit]: a
    # workspace box, joint limits. A robot that is outside may stay or come back.
    position_limits: tuple[tuple[float, float] | None, ...] | None = None
    # How far from the reported state a chunk may lead, one a dimension that names its state [its unit].
    max_from_state: tuple[float | None, ...] | None = None
    # The action that replaces a whole chunk when it is held [action unit]; null in a dimension whose meaning
    # says what standing still is; a name in a discrete space.
    hold_action: tuple[float | None, ...] | str | None = None
    # A chunk of lower confidence is held.
    min_confidence: float | None = None
    # Dimensions in which a chunk that is held for its confidence alone stays as the policy gave it, within
    # the bounds: those that a policy which abstains has learned to leave as they are, such as a gripper.
    hold_keeps: tuple[str, ...] = ()


def check_limits(space: ContinuousSpace, safety: Safety, *, confident: bool) -> None:
    """Check the limits of a continuous policy; `confident`: it says how sure it is.

    Raises:
        SpecError: a limit has another width, limits nothing that is known, or contradicts another.
    """
    for name in ("max_step", "position_limits", "max_from_state", "hold_action"):
        values = getattr(safety, name)
        require(
            values is None or (not isinstance(values, str) and len(values) == space.width),
            f"safety.{name} has {len(values or ())} values for the action {space.names}",
        )
    require(
        safety.min_confidence is None or confident,
        "safety.min_confidence needs an artifact that returns 'confidence'",
    )
    unknown = [name for name in safety.hold_keeps if name not in space.names]
    require(
        not unknown, f"safety.hold_keeps names {', '.join(unknown)}; the action has {', '.join(space.names)}"
    )
    for name in ("max_step", "max_from_state"):
        for dimension, value in zip(space.dimensions, getattr(safety, name) or (), strict=False):
            require(
                value is None or value > 0,
                f"safety.{name} of {dimension.name} must be positive, got {value}",
            )
            _check_limited(f"safety.{name}", dimension, value, space)
    for dimension, pair in zip(space.dimensions, safety.position_limits or (), strict=False):
        require(
            pair is None or pair[0] < pair[1],
            f"safety.position_limits of {dimension.name} needs low < high, got {pair}",
        )
        _check_limited("safety.position_limits", dimension, pair, space)
    _check_places(space, safety)
    if safety.mode == "hold" or safety.min_confidence is not None or safety.hold_action is not None:
        _check_hold(space, safety)


def _check_limited(limit: str, dimension: Dimension, value: object, space: ContinuousSpace) -> None:
    require(
        value is None or dimension.name not in space.rotating,
        f"{limit} limits {dimension.name}, a part of a rotation, which would no longer be one",
    )


def _check_places(space: ContinuousSpace, safety: Safety) -> None:
    """A limit on where a dimension leads needs to know where it is, and holding must not lead elsewhere."""
    moving = ("delta", "velocity")
    for name, meanings in {"position_limits": moving, "max_from_state": (*moving, "absolute")}.items():
        declared = safety.hold_action if isinstance(safety.hold_action, tuple) else (None,) * space.width
        columns = zip(space.dimensions, getattr(safety, name) or (), declared, strict=False)
        for dimension, limit, held in columns:
            require(
                limit is None or (dimension.state is not None and dimension.meaning in meanings),
                f"safety.{name} of {dimension.name} needs a dimension of the state in `state` and one of the "
                f"meanings {', '.join(meanings)}, got {dimension.state!r} and {dimension.meaning!r}",
            )
            require(
                limit is None or held is None or (held == 0 and dimension.meaning in moving),
                f"safety.hold_action of {dimension.name} must be null: safety.{name} limits where it leads",
            )


def _check_hold(space: ContinuousSpace, safety: Safety) -> None:
    """Whatever a held dimension is set to, must be known and inside its bounds."""
    action = safety.hold_action if isinstance(safety.hold_action, tuple) else (None,) * space.width
    for dimension, declared in zip(space.dimensions, action, strict=True):
        resting = dimension.meaning in ("delta", "velocity")
        require(
            declared is not None or resting or dimension.state is not None,
            f"safety.{asked_by(safety)} needs a safety.hold_action for {dimension.name}, which says neither "
            "by its meaning ('delta', 'velocity') nor by its state what standing still is",
        )
        held = 0.0 if declared is None and resting else declared
        require(
            held is None or dimension.low <= held <= dimension.high,
            f"safety.hold_action holds {dimension.name} at {held}, outside its bounds {dimension.low} and "
            f"{dimension.high} {dimension.unit}",
        )
    if None not in action:
        held = np.asarray(action, np.float32)
        require(
            np.allclose(space.valid_rotations(held), held, atol=1e-3),
            f"safety.hold_action {safety.hold_action} holds a rotation that is none",
        )


def asked_by(safety: Safety) -> str:
    """Return which of the fields makes a held action necessary."""
    if safety.mode == "hold":
        return "mode 'hold'"
    return "min_confidence" if safety.min_confidence is not None else "hold_action"
