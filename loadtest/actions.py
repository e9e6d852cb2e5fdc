"""What a right chunk of actions is, by the kind of the policy's action space."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

# Share of a dimension's range, or of a probability, that is rounding: float32 is sent with seven digits.
TOLERANCE = 1e-6
# How far the probabilities of all names may be from 1 together.
SUM_TOLERANCE = 1e-3


class WrongAnswer(ValueError):
    """An answer breaks the contract; `kind` is the class that a report counts it under."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, eq=False)
class NumericActions:
    """T actions of A numbers inside their bounds."""

    names: tuple[str, ...]
    # float64 [A], physical units
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    # T
    horizon: int

    @classmethod
    def of(cls, space: Mapping[str, Any]) -> Self:
        """Read a continuous or binned action space."""
        dimensions = space["dimensions"]
        return cls(
            names=tuple(dimension["name"] for dimension in dimensions),
            low=np.array([dimension["low"] for dimension in dimensions]),
            high=np.array([dimension["high"] for dimension in dimensions]),
            horizon=space["horizon"],
        )

    def check(self, actions: object) -> None:
        """Check the shape, that all numbers are finite, and their bounds.

        Raises:
            WrongAnswer: of kind form, shape, not finite or bounds.
        """
        table = _table(_typed(actions, list[list[float]]), (self.horizon, len(self.names)), "actions")
        slack = TOLERANCE * (self.high - self.low)
        outside = (table < self.low - slack) | (table > self.high + slack)
        if outside.any():
            step, column = np.argwhere(outside)[0]
            value = f"{self.names[column]} is {table[step, column]:g} at step {step}"
            raise WrongAnswer("bounds", f"{value}, outside {self.low[column]:g} to {self.high[column]:g}")


class Symbol(msgspec.Struct, frozen=True):
    """One symbolic action and the probabilities of all."""

    name: str
    index: int
    probabilities: list[float]


@dataclass(frozen=True)
class SymbolicActions:
    """T actions, each one of V names."""

    names: tuple[str, ...]
    # T
    horizon: int

    @classmethod
    def of(cls, space: Mapping[str, Any]) -> Self:
        """Read a discrete action space."""
        return cls(tuple(space["vocabulary"]), space["horizon"])

    def check(self, actions: object) -> None:
        """Check the number of actions, their names, and that probabilities are some.

        Raises:
            WrongAnswer: of kind form, shape, not finite, names or bounds.
        """
        symbols = _typed(actions, list[Symbol])
        rows = [symbol.probabilities for symbol in symbols]
        table = _table(rows, (self.horizon, len(self.names)), "probabilities")
        for step, symbol in enumerate(symbols):
            if symbol.index not in range(len(self.names)) or self.names[symbol.index] != symbol.name:
                raise WrongAnswer("names", f"action {step} is {symbol.name!r} with index {symbol.index}")
        if (table < -TOLERANCE).any() or (abs(table.sum(axis=1) - 1) > SUM_TOLERANCE).any():
            raise WrongAnswer("bounds", "probabilities are negative, or their sum is not 1")


ActionCheck = NumericActions | SymbolicActions


def of(space: Mapping[str, Any]) -> ActionCheck:
    """Read the action space of a policy's description."""
    return SymbolicActions.of(space) if space.get("kind") == "discrete" else NumericActions.of(space)


def _typed(value: object, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise WrongAnswer("form", f"actions: {error}") from error


def _table(rows: list[list[float]], shape: tuple[int, int], name: str) -> NDArray[np.float64]:
    widths = sorted({len(row) for row in rows})
    if len(rows) != shape[0] or widths != [shape[1]]:
        raise WrongAnswer("shape", f"{name} have shape {[len(rows), *widths]}, expected {list(shape)}")
    table = np.array(rows, np.float64)
    if not np.isfinite(table).all():
        raise WrongAnswer("not finite", f"{name} hold a number that is not finite")
    return table
