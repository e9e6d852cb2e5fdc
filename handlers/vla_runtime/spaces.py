"""What a policy's numbers mean: vectors of named dimensions, and the three kinds of action space.

In JSON an action space says its `kind`: `continuous`, `binned` or `discrete`.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from vla_runtime import rotations
from vla_runtime.errors import SpecError

Normalisation = Literal["bounds", "mean_std", "quantiles", "identity"]
Meaning = Literal["delta", "absolute", "velocity"]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the spec: immutable, and a misspelt or unknown key is an error, never ignored."""


class Dimension(Part, frozen=True, omit_defaults=True):
    """One named dimension of the state or of an action, with its physical unit and bounds.

    An action's bounds are safety limits, a state's the range that is plausible; neither normalises anything
    unless the vector's statistics leave that to them.
    """

    name: str
    unit: str
    low: float
    high: float
    # What an action's number is: a change, a position or a rate. It decides what standing still means.
    meaning: Meaning | None = None
    # The dimension of the state that measures what this dimension of the action moves or sets.
    state: str | None = None
    # Whether the policy gives an absolute action as the difference from that state, to be added here.
    relative: bool = False

    def __post_init__(self) -> None:
        finite = math.isfinite(self.low) and math.isfinite(self.high)
        require(
            finite and self.low < self.high, f"{self.name}: needs low < high, got {self.low} and {self.high}"
        )
        require(
            not self.relative or (self.state is not None and self.meaning == "absolute"),
            f"{self.name}: a relative dimension needs meaning 'absolute' and a dimension of the state in "
            f"`state`, got {self.meaning!r} and {self.state!r}",
        )


class Statistics(Part, frozen=True):
    """Normalisation statistics of the training data, one number a dimension, in physical units.

    A normalisation needs its own two alone: `mean` and `std`, `q01` and `q99`, or `low` and `high`.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    q01: tuple[float, ...] = ()
    q99: tuple[float, ...] = ()
    # The range that `bounds` maps to [-1, 1]; empty: the dimensions' own bounds are that range.
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def sha256(self) -> str:
        """Return the digest that names these statistics in provenance."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


class Vector(Part, frozen=True, kw_only=True, dict=True):
    """A vector of named dimensions and the rule that normalises it: `(x - shift) / scale`.

    bounds     the range of the statistics becomes [-1, 1]
    quantiles  q01 and q99 become -1 and 1
    mean_std   zero mean, unit standard deviation
    identity   the policy's units are the physical ones
    """

    dimensions: tuple[Dimension, ...]
    normalisation: Normalisation
    statistics: Statistics
    # Names of the dimensions that are not normalised: the policy's unit is the physical one.
    passthrough: tuple[str, ...] = ()
    # Added to the range or standard deviation before dividing: 1e-6 in openpi, 1e-8 in LeRobot.
    epsilon: float = 0.0
    # Width that the policy itself works with, beyond the dimensions filled with zeros (32 in pi0).
    padded_to: int | None = None

    def __post_init__(self) -> None:
        repeated = {name for name in self.names if self.names.count(name) > 1}
        require(bool(self.names), "a vector needs one dimension at least")
        require(not repeated, f"dimensions need distinct names, got {self.names}")
        require(self.epsilon >= 0, f"epsilon must not be negative, got {self.epsilon}")
        require(
            self.padded_to is None or self.padded_to >= len(self.names),
            f"padded_to is {self.padded_to}, less than the {len(self.names)} dimensions {self.names}",
        )
        for name in self.passthrough:
            require(name in self.names, f"passthrough names {name!r}; the dimensions are {self.names}")
        self._check_statistics()
        for dimension, scale in zip(self.dimensions, self.scale, strict=True):
            require(
                math.isfinite(scale) and scale > 0,
                f"{dimension.name}: {self.normalisation} normalisation needs a positive scale, got {scale}",
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The dimensions' names, in order."""
        return tuple(dimension.name for dimension in self.dimensions)

    @property
    def policy_width(self) -> int:
        """Numbers that the policy itself reads or gives."""
        return self.padded_to or len(self.dimensions)

    @cached_property
    def low(self) -> np.ndarray:
        """Lower bounds: float32 [dimensions], physical units."""
        return _float32([dimension.low for dimension in self.dimensions])

    @cached_property
    def high(self) -> np.ndarray:
        """Upper bounds: float32 [dimensions], physical units."""
        return _float32([dimension.high for dimension in self.dimensions])

    @cached_property
    def shift(self) -> np.ndarray:
        """What normalisation subtracts: float64 [dimensions], physical units.

        In float32 a constant dimension's epsilon would vanish beside its value.
        """
        low, high = self._range()
        # In openpi and LeRobot the epsilon widens a range at its upper end.
        shift = low if self.normalisation == "mean_std" else (low + high + self.epsilon) / 2
        return np.where(self._passed, 0.0, shift)

    @cached_property
    def scale(self) -> np.ndarray:
        """What normalisation divides by: float32 [dimensions], physical units."""
        low, high = self._range()
        mean_std = self.normalisation == "mean_std"
        scale = high + self.epsilon if mean_std else (high - low + self.epsilon) / 2
        return np.where(self._passed, np.float32(1), scale).astype(np.float32)

    def binned(self, values: np.ndarray, count: int) -> list[int]:
        """Return the bins of one vector among `count` equal ones over [-1, 1], normalised: -1 below them all.

        The lower end of a range is -1 exactly, as in openpi and LeRobot, so that rounding moves no value that
        rests there into another bin.

        Args:
            values: float32 [dimensions], physical units
            count: bins
        """
        low, high = self._range()
        values = np.where(values == low.astype(np.float32), low, values)
        if self.normalisation == "mean_std":
            normalised = (values - low) / (high + self.epsilon)
        else:
            normalised = 2 * (values - low) / (high - low + self.epsilon) - 1
        normalised = np.where(self._passed, values, normalised)
        edges = np.linspace(-1, 1, count + 1)[:-1]
        return (np.digitize(normalised, edges) - 1).tolist()

    @property
    def _passed(self) -> np.ndarray:
        passed = self.names if self.normalisation == "identity" else self.passthrough
        return np.isin(self.names, passed)  # bool [dimensions]

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the two arrays that the normalisation is made of, float64 [dimensions]."""
        statistics = self.statistics
        pairs = {
            "mean_std": (statistics.mean, statistics.std),
            "quantiles": (statistics.q01, statistics.q99),
            "bounds": (statistics.low or self.low.tolist(), statistics.high or self.high.tolist()),
            "identity": (self.low.tolist(), self.high.tolist()),
        }
        first, second = pairs[self.normalisation]
        return np.asarray(first, np.float64), np.asarray(second, np.float64)

    def _check_statistics(self) -> None:
        needed = {"mean_std": ("mean", "std"), "quantiles": ("q01", "q99")}.get(self.normalisation, ())
        for name, values in msgspec.structs.asdict(self.statistics).items():
            require(
                len(values) == len(self.dimensions) or (not values and name not in needed),
                f"statistics.{name} has {len(values)} values for the dimensions {self.names}",
            )
        low, high = self.statistics.low, self.statistics.high
        require(bool(low) == bool(high), "statistics.low and statistics.high come together or not at all")


class Rotation(Part, frozen=True):
    """Dimensions that are one rotation together, made valid after every answer; see `rotations.py`."""

    kind: Literal["quaternion", "rotation_6d"]
    # Names of its dimensions: 4, or 6 (first column of the rotation matrix, then the second).
    dimensions: tuple[str, ...]


class ContinuousSpace(Vector, frozen=True, kw_only=True, tag_field="kind", tag="continuous"):
    """A chunk of T actions of A continuous dimensions each."""

    # Actions in a chunk [steps].
    horizon: int
    # Rate at which the robot is to execute them [Hz].
    control_hz: float
    rotations: tuple[Rotation, ...] = ()
    # Whether a value beyond its bounds means the bound: of a policy that was trained on actions which end
    # there. It is cut without being called a violation.
    saturating: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_timing(self.horizon, self.control_hz)
        taken: list[str] = []
        for rotation in self.rotations:
            self._check_rotation(rotation)
            taken += rotation.dimensions
        require(len(taken) == len(set(taken)), f"a dimension may belong to one rotation only, got {taken}")

    @property
    def width(self) -> int:
        """A."""
        return len(self.dimensions)

    @property
    def output(self) -> str:
        """Name of the artifact's output that holds the chunk."""
        return "actions"

    @property
    def rotating(self) -> frozenset[str]:
        """Names of the dimensions that are part of a rotation."""
        return frozenset(name for rotation in self.rotations for name in rotation.dimensions)

    def valid_rotations(self, actions: np.ndarray) -> np.ndarray:
        """Make every declared rotation one again: float32 [..., A], NaN in one that can't be mended."""
        mended = actions.copy()
        for rotation in self.rotations:
            places = [self.names.index(name) for name in rotation.dimensions]
            _, make_valid = rotations.KINDS[rotation.kind]
            mended[..., places] = make_valid(actions[..., places])
        return mended

    def _check_rotation(self, rotation: Rotation) -> None:
        needed, _ = rotations.KINDS[rotation.kind]
        missing = [name for name in rotation.dimensions if name not in self.names]
        require(not missing, f"a {rotation.kind} names {missing}; the dimensions are {self.names}")
        require(
            len(rotation.dimensions) == needed,
            f"a {rotation.kind} has {needed} dimensions, got {rotation.dimensions}",
        )
        for dimension in self.dimensions:
            require(
                dimension.name not in rotation.dimensions or (dimension.low <= -1 and dimension.high >= 1),
                f"{dimension.name}: part of a {rotation.kind}, whose bounds must not be within -1 and 1, "
                f"got {dimension.low} and {dimension.high}",
            )


class BinnedSpace(ContinuousSpace, frozen=True, kw_only=True, tag="binned"):
    """Actions that the policy chose among uniform bins over [-1, 1] of every normalised dimension.

    As in RT-1 (Brohan et al. 2022) and OpenVLA (Kim et al. 2024). The artifact decodes its bins itself, with
    `actions.decode_bins`: what it returns are normalised actions.
    """

    # Bins a dimension.
    bins: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bins >= 2, f"bins must be 2 at least, got {self.bins}")
        require(
            self.normalisation in ("bounds", "quantiles"),
            "binned actions need bounds or quantiles: any other normalisation leaves values outside the bins",
        )
        for dimension in self.dimensions:
            require(
                dimension.name not in self.passthrough or (dimension.low >= -1 and dimension.high <= 1),
                f"{dimension.name}: not normalised, and its bounds {dimension.low} and {dimension.high} "
                f"reach beyond the bins, which end at -1 and 1",
            )


class DiscreteSpace(Part, frozen=True, kw_only=True, tag_field="kind", tag="discrete"):
    """A chunk of T symbolic actions, each one of V names, such as `pick_up` or `navigate_to`."""

    vocabulary: tuple[str, ...]
    # Actions in a chunk [steps].
    horizon: int
    # Rate at which the robot is to execute them [Hz].
    control_hz: float

    def __post_init__(self) -> None:
        _check_timing(self.horizon, self.control_hz)
        require(
            len(self.vocabulary) >= 2
            and all(self.vocabulary)
            and len(set(self.vocabulary)) == len(self.vocabulary),
            f"vocabulary needs two distinct names at least, got {self.vocabulary}",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The vocabulary, in order."""
        return self.vocabulary

    @property
    def width(self) -> int:
        """V."""
        return len(self.vocabulary)

    @property
    def output(self) -> str:
        """Name of the artifact's output that holds the chunk."""
        return "logits"

    def index(self, name: str) -> int:
        """Return a name's place in the vocabulary.

        Raises:
            SpecError: the vocabulary has no such action; the message lists those there are.
        """
        require(name in self.vocabulary, f"unknown action {name!r}; available: {', '.join(self.vocabulary)}")
        return self.vocabulary.index(name)


ActionSpace: TypeAlias = ContinuousSpace | BinnedSpace | DiscreteSpace


def require(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion does
    """Raise a `SpecError` with this message unless the condition holds."""
    if not condition:
        raise SpecError(message)


def _check_timing(horizon: int, control_hz: float) -> None:
    require(horizon > 0, f"horizon must be positive, got {horizon}")
    require(control_hz > 0, f"control_hz must be positive, got {control_hz}")


def _float32(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)
