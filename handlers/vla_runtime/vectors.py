"""Vectors of named dimensions: the state, and the actions of a continuous space. What normalises them."""

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np

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


def require(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion does
    """Raise a `SpecError` with this message unless the condition holds."""
    if not condition:
        raise SpecError(message)


def _float32(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)
