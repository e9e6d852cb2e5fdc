"""Action spaces: what the policy returns to a chunk of actions that a robot understands, and back."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from vla_runtime.artifact import Outputs
from vla_runtime.errors import PolicyFailed
from vla_runtime.safety import (
    Robot,
    SafetyReport,
    enforce,
    enforce_discrete,
    saturate,
    wanted_beyond,
)
from vla_runtime.spec import (
    ActionSpace,
    BinnedSpace,
    ContinuousSpace,
    DiscreteSpace,
    Extra,
    PolicySpec,
    Precision,
    Vector,
)

# Largest difference of a replayed answer from the recorded one, in normalised units or in probability.
# Where products round to 8 bits, processors that add them in another order differ by more: 0.004 measured.
EXAMPLE_TOLERANCE: dict[Precision, float] = {
    "float32": 1e-3,
    "bfloat16": 3e-2,
    "int8": 3e-2,
    "int8_static": 3e-2,
    "int8_weights": 3e-2,
    "int4_weights": 3e-2,
}
# The same for float32 products that a GPU may compute in TensorFloat-32.
TF32_TOLERANCE = 1e-2


@dataclass(frozen=True)
class ActionChunk:
    """What the robot is to do next."""

    # float32 [T, A], physical units; int64 [T], indices into the vocabulary of a discrete space.
    actions: np.ndarray
    space: ActionSpace
    # What the safety limits did to the actions.
    safety: SafetyReport
    # In [0, 1]; None where the policy gives none.
    confidence: float | None
    # float32 [C, h, w], where the command looks; None where the policy gives none.
    attention: np.ndarray | None
    # float32 [T, V], sums to 1 over V; None unless the space is discrete.
    probabilities: np.ndarray | None = None
    # The policy's further outputs, ready to be serialised.
    extras: dict[str, Any] = field(default_factory=dict)
    # Actions at its beginning that the request gave: the robot executes them before the chunk is there.
    delay: int = 0

    @property
    def recordable(self) -> np.ndarray:
        """What an example records: float32 [T, A] in physical units, or the probabilities [T, V]."""
        return self.actions if self.probabilities is None else self.probabilities

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the T symbolic actions in a discrete space; none in any other."""
        return () if self.probabilities is None else tuple(self.space.names[i] for i in self.actions)

    def difference(self, recorded: np.ndarray, *, typical: bool = False) -> float:
        """Return the largest, or the mean, difference from a record, normalised or in probability."""
        difference = np.abs(self.recordable - recorded)
        scaled = difference if isinstance(self.space, DiscreteSpace) else difference / self.space.scale
        return float(scaled.mean() if typical else scaled.max())


def to_chunk(
    output: Outputs,
    state: np.ndarray,
    previous: np.ndarray,
    spec: PolicySpec,
    prefix: np.ndarray | None = None,
) -> ActionChunk:
    """Turn one of the artifact's outputs into actions that may leave: decoded, limited, named.

    Args:
        output: what the policy says
        state: float32 [S], the reported state in physical units
        previous: float32 [A], the action that the robot does last before this chunk, NaN where it is unknown
        spec: what the output means
        prefix: float32 [delay, A], physical units, the actions that the chunk begins with; None: none

    Raises:
        PolicyFailed: the chunk does not have the shape that the spec says.
        UnsafeAction: a limit is broken, and the spec says to reject or has nothing safe to send instead.
    """
    space, safety = spec.action, spec.safety
    _check_shape(output.actions, space)
    extras = {name: _extra(name, output.extras[name], extra) for name, extra in spec.artifact.extras.items()}
    if isinstance(space, DiscreteSpace):
        probabilities = softmax(output.actions)
        confidence = output.confidence
        if confidence is None:  # the least likely of the chosen actions
            confidence = float(probabilities.max(-1).min())
        indices, probabilities, report = enforce_discrete(probabilities, confidence, space, safety)
        return ActionChunk(indices, space, report, confidence, output.attention, probabilities, extras)
    measured = measured_by(space, state, spec.state)
    given = unnormalise(output.actions, space) + np.where(relative(space), measured, np.float32(0))
    delay = 0 if prefix is None else len(prefix)
    if delay:
        given[:delay] = prefix
    wanted = space.valid_rotations(given)
    actions = saturate(wanted, space) if space.saturating else wanted
    actions, report = enforce(actions, output.confidence, Robot(measured, previous, delay), space, safety)
    report = replace(report, saturated=wanted_beyond(wanted, space))
    return ActionChunk(actions, space, report, output.confidence, output.attention, None, extras, delay)


def _check_shape(actions: np.ndarray, space: ActionSpace) -> None:
    width = space.width if isinstance(space, DiscreteSpace) else space.policy_width
    if actions.shape != (space.horizon, width):
        raise PolicyFailed(
            None, f"the policy returns {space.output} {actions.shape} instead of {(space.horizon, width)}"
        )


def measured_by(space: ContinuousSpace, state: np.ndarray, measured: Vector | None) -> np.ndarray:
    """Return what the reported state says of each dimension of an action.

    Args:
        space: the action's dimensions, some of which name a dimension of the state
        state: float32 [S], physical units
        measured: the state's dimensions

    Returns:
        float32 [A], NaN for a dimension that names none
    """
    names = measured.names if measured else ()
    found = [state[names.index(d.state)] if d.state else np.nan for d in space.dimensions]
    return np.asarray(found, np.float32)


def relative(space: ContinuousSpace) -> np.ndarray:
    """Return which dimensions the policy gives as a difference from the reported state: bool [A]."""
    return np.array([dimension.relative for dimension in space.dimensions])


def prefix_inputs(prefix: np.ndarray, state: np.ndarray, spec: PolicySpec) -> dict[str, np.ndarray]:
    """Return what `act` takes of the actions that a chunk begins with; nothing without a `max_delay`.

    Args:
        prefix: float32 [delay, A], physical units
        state: float32 [S], the reported state in physical units
        spec: what the policy takes

    Returns:
        `prefix` float32 [T, policy_width], normalised, zero from `delay` on, and `delay` int64 []
    """
    space = spec.action
    if not spec.max_delay or isinstance(space, DiscreteSpace):
        return {}
    offset = np.where(relative(space), measured_by(space, state, spec.state), np.float32(0))
    table = np.zeros((space.horizon, space.policy_width), np.float32)
    table[: len(prefix)] = normalise(prefix - offset, space)
    return {"prefix": table, "delay": np.array(len(prefix), np.int64)}


def example_tolerance(spec: PolicySpec) -> float:
    """Return how far a replayed example may be from its record: rounding, or one bin where it chose one."""
    artifact = spec.artifact
    rounding = EXAMPLE_TOLERANCE[artifact.precision]
    rounding = max(rounding, TF32_TOLERANCE) if artifact.tf32 else rounding
    return max(rounding, 2.001 / spec.action.bins) if isinstance(spec.action, BinnedSpace) else rounding


def normalise(values: np.ndarray, vector: Vector) -> np.ndarray:
    """Physical units to the policy's: float32 [..., dimensions] to float32 [..., policy_width]."""
    normalised = ((values - vector.shift) / vector.scale).astype(np.float32)
    padding = vector.policy_width - normalised.shape[-1]
    if not padding:
        return normalised
    return np.pad(normalised, [(0, 0)] * (normalised.ndim - 1) + [(0, padding)])


def unnormalise(values: np.ndarray, vector: Vector) -> np.ndarray:
    """The inverse of `normalise`: float32 [..., policy_width] to float32 [..., dimensions]."""
    return (values[..., : len(vector.dimensions)] * vector.scale + vector.shift).astype(np.float32)


def encode_bins(values: torch.Tensor, bins: int) -> torch.Tensor:
    """Return the bins of normalised values: float [...] to int64 [...]; beyond [-1, 1] the outermost bin."""
    return ((values.float() + 1) * (bins / 2)).floor().clamp(0, bins - 1).long()


def decode_bins(indices: torch.Tensor, bins: int) -> torch.Tensor:
    """Return the bins' centres: int64 [...] to float32 [...] in (-1, 1), within half a bin of the value."""
    return (indices.float() + 0.5) * (2 / bins) - 1


def encode(actions: np.ndarray, space: BinnedSpace) -> np.ndarray:
    """Physical units to bins: float32 [..., A] to int64 [..., A]."""
    return encode_bins(torch.from_numpy(normalise(actions, space)), space.bins).numpy()


def decode(indices: np.ndarray, space: BinnedSpace) -> np.ndarray:
    """Bins to the physical units of their centres: int64 [..., A] to float32 [..., A]."""
    return unnormalise(decode_bins(torch.from_numpy(indices), space.bins).numpy(), space)


def encode_names(names: Sequence[str], space: DiscreteSpace) -> np.ndarray:
    """Names of symbolic actions to int64 [len(names)].

    Raises:
        SpecError: the vocabulary lacks a name.
    """
    return np.array([space.index(name) for name in names], np.int64)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities: float32 [..., V] to the same shape; NaN where a row is not finite."""
    finite = np.isfinite(logits).all(-1, keepdims=True)
    safe = np.where(finite, logits, 0).astype(np.float64)
    powers = np.exp(safe - safe.max(-1, keepdims=True))
    return np.where(finite, powers / powers.sum(-1, keepdims=True), np.nan).astype(np.float32)


def _extra(name: str, value: np.ndarray, extra: Extra) -> Any:
    """Return one row of an extra output as plain values: a text, numbers, or labels with their indices."""
    if extra.pieces:
        return _text(name, value, extra.pieces)
    if not extra.labels:
        return value.tolist()
    if value.ndim:
        return [_extra(name, item, extra) for item in value]
    return {"name": extra.labels[int(value)], "index": int(value)}


def _text(name: str, indices: np.ndarray, pieces: Sequence[str]) -> str:
    """Return the text that one row of indices [N] spells, up to the piece that ends it.

    Raises:
        PolicyFailed: the row is no list of indices of pieces.
    """
    if indices.ndim != 1 or not all(0 <= index < len(pieces) for index in indices.tolist()):
        raise PolicyFailed(
            None,
            f"the policy's {name} must be a row of indices from 0 to {len(pieces) - 1}, one for each piece, "
            f"got shape {indices.shape}: {str(indices.tolist())[:100]}",
        )
    said = [pieces[int(index)] for index in indices]
    return "".join(said[: said.index("")] if "" in said else said).strip()
