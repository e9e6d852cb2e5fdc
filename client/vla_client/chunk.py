"""The server's answer, checked before a robot may execute it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_client.errors import InvalidAnswer

SAFETY_STATUSES = ("ok", "clamped", "held")


@dataclass(frozen=True)
class SafetyReport:
    """What the server's safety layer did to the chunk."""

    # "ok": nothing; "clamped": brought inside the limits; "held": replaced by the declared safe action.
    status: str
    violations: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Symbol:
    """One symbolic action of a discrete policy, such as `pick_up`."""

    name: str
    # Its place in the chunk's `action_names`.
    index: int
    # Of each name in `action_names`, in [0, 1].
    probabilities: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """The next T actions, to be executed at `control_hz`: A numbers each, or symbols of a discrete policy."""

    # float32 [T, A], physical units (the policy's description names them), finite; [T, 0] with `symbols`.
    actions: NDArray[np.float32]
    # A names; all the names that a discrete policy chooses from.
    action_names: tuple[str, ...]
    # Rate at which the actions follow each other [Hz].
    control_hz: float
    # In [0, 1]; None where the policy has none.
    confidence: float | None
    safety: SafetyReport
    # Where the server's time went [ms], by stage; also `batch_size`, the robots that shared the forward pass.
    timing_ms: Mapping[str, float]
    policy: str
    version: str
    request_id: str
    # T symbolic actions of a discrete policy; empty for any other.
    symbols: tuple[Symbol, ...] = ()
    # The policy's further outputs by name, for instance the skill that it chose; empty for most.
    extras: Mapping[str, Any] = field(default_factory=dict)
    # Actions at its beginning that the request gave because they are executed before the answer is there,
    # and the most that the policy plans for [steps]; 0: it does not.
    delay: int = 0
    max_delay: int = 0

    @property
    def done(self) -> float | None:
        """How sure the policy is that the task is done, in [0, 1]; None where its `extras` do not say so."""
        value = self.extras.get("done")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            return None
        return float(value)

    @classmethod
    def from_answer(cls, answer: object) -> ActionChunk:
        """Read the decoded JSON of an answer.

        Raises:
            InvalidAnswer: a key is missing or of the wrong type, the actions are not [T, A] with a name for
                each of the A, a number is not finite, a symbol is not in the policy's vocabulary, or the
                safety status is unknown.
        """
        body = _typed(answer, dict, "the answer")
        names = tuple(str(name) for name in _typed(_get(body, "action_names"), list, "action_names"))
        rows = _typed(_get(body, "actions"), list, "actions")
        symbols = tuple(_symbol(row, names) for row in rows if isinstance(row, dict))
        if symbols and len(symbols) != len(rows):
            raise InvalidAnswer("actions mix numbers and symbols")
        return cls(
            actions=np.empty((len(rows), 0), np.float32) if symbols else _actions(rows, names),
            action_names=names,
            control_hz=_rate_hz(_get(body, "control_hz")),
            confidence=_confidence(body.get("confidence")),
            safety=_safety(_get(body, "safety")),
            timing_ms=dict(_typed(body.get("timing_ms", {}), dict, "timing_ms")),
            policy=str(_get(body, "policy")),
            version=str(_get(body, "version")),
            request_id=str(_get(body, "request_id")),
            symbols=symbols,
            extras=dict(_typed(body.get("extras", {}), dict, "extras")),
            delay=_steps(body.get("delay", 0), "delay"),
            max_delay=_steps(body.get("max_delay", 0), "max_delay"),
        )


def _symbol(row: dict[str, Any], names: tuple[str, ...]) -> Symbol:
    name, index = _get(row, "name", "actions."), _get(row, "index", "actions.")
    if not isinstance(index, int) or not 0 <= index < len(names) or names[index] != name:
        raise InvalidAnswer(f"unknown action {name!r} at {index!r}; the policy has {', '.join(names)}")
    given = _typed(_get(row, "probabilities", "actions."), list, "probabilities")
    probabilities = tuple(_number(value, "probabilities") for value in given)
    if len(probabilities) != len(names) or not all(0 <= value <= 1 for value in probabilities):
        raise InvalidAnswer(f"probabilities must be {len(names)} numbers from 0 to 1, got {given}")
    return Symbol(name, index, probabilities)


def _actions(rows: object, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Return float32 [T, A], T >= 1."""
    try:
        table = np.asarray(rows)
    except ValueError as error:  # rows of different lengths
        raise InvalidAnswer(f"actions are no table of numbers: {error}") from error
    if table.dtype.kind not in "iuf":
        raise InvalidAnswer("actions are no table of numbers: they hold something else")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused below
        actions = table.astype(np.float32)
    if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != len(names):
        raise InvalidAnswer(
            f"actions have shape {list(actions.shape)}, expected [T, {len(names)}] with T >= 1, "
            f"for {', '.join(names)}"
        )
    if not np.isfinite(actions).all():
        step, dimension = np.argwhere(~np.isfinite(actions))[0]
        raise InvalidAnswer(f"actions hold a non-finite number at step {step}, {names[dimension]}")
    return actions


def _safety(value: object) -> SafetyReport:
    body = _typed(value, dict, "safety")
    status = _get(body, "status", "safety.")
    if status not in SAFETY_STATUSES:
        raise InvalidAnswer(f"safety.status is {status!r}, expected one of {', '.join(SAFETY_STATUSES)}")
    return SafetyReport(status, tuple(_typed(body.get("violations", []), list, "safety.violations")))


def _get(body: dict[str, Any], key: str, prefix: str = "") -> Any:
    if key not in body:
        raise InvalidAnswer(
            f"the answer has no {prefix}{key!s}; it has: {', '.join(sorted(body)) or 'nothing'}"
        )
    return body[key]


def _typed(value: object, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidAnswer(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
    return value


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidAnswer(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def _steps(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidAnswer(f"{name} must be an integer from 0, got {value!r}")
    return value


def _rate_hz(value: object) -> float:
    rate = _number(value, "control_hz")
    if not 0 < rate < math.inf:
        raise InvalidAnswer(f"control_hz must be finite and above 0, got {rate:g}")
    return rate


def _confidence(value: object) -> float | None:
    if value is None:
        return None
    confidence = _number(value, "confidence")
    if not 0 <= confidence <= 1:
        raise InvalidAnswer(f"confidence must be from 0 to 1, got {confidence:g}")
    return confidence
