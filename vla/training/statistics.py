"""Normalisation statistics of a data set, per dimension of the state and of the action."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from vla.tabletop.demonstrations import Demonstrations
from vla.workbench import demonstrations as workbench


class StatisticsError(ValueError):
    """Statistics are missing, malformed, or unusable for normalisation."""


@dataclass(frozen=True)
class Summary:
    """Statistics of D dimensions, in physical units; every field has D numbers in the order of ``names``."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # The 1 % and 99 % quantiles.
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    def __post_init__(self) -> None:
        for field in fields(self)[1:]:
            values = getattr(self, field.name)
            if len(values) != len(self.names):
                raise StatisticsError(f"{field.name} has {len(values)} numbers for {len(self.names)} names")
            if not np.isfinite(values).all():
                raise StatisticsError(f"{field.name} has a number that is not finite: {list(values)}")
        for index, name in enumerate(self.names):
            if not (self.q01[index] < self.q99[index] and self.std[index] > 0):
                low, high = self.q01[index], self.q99[index]
                raise StatisticsError(
                    f"dimension {name!r} is constant (q01 {low:g}, q99 {high:g}): it cannot be normalised"
                )

    @classmethod
    def of(cls, values: NDArray, names: tuple[str, ...]) -> "Summary":
        """Summarise ``values``, float [..., D]; raises ``StatisticsError`` for a constant dimension."""
        rows = values.reshape(-1, len(names)).astype(np.float64)  # [M, D]
        q01, q99 = np.quantile(rows, (0.01, 0.99), axis=0)
        columns = (rows.mean(0), rows.std(0), q01, q99, rows.min(0), rows.max(0))
        return cls(names, *(tuple(column.tolist()) for column in columns))


@dataclass(frozen=True)
class Statistics:
    """Statistics of a data set's state and of all its action labels."""

    state: Summary
    action: Summary

    @classmethod
    def compute(cls, dataset: Demonstrations | workbench.Demonstrations) -> "Statistics":
        """Summarise every frame; raises ``StatisticsError`` for a constant dimension."""
        about = dataset.description
        return cls(
            state=Summary.of(dataset.state, tuple(dimension.name for dimension in about.state)),
            action=Summary.of(dataset.actions, tuple(dimension.name for dimension in about.action)),
        )

    def save(self, path: Path | str) -> None:
        """Write readable JSON."""
        Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(asdict(self)), indent=2) + b"\n")

    @classmethod
    def load(cls, path: Path | str) -> "Statistics":
        """Read what ``save`` wrote; raises ``StatisticsError`` where that is missing or malformed."""
        try:
            return msgspec.json.decode(Path(path).read_bytes(), type=cls)
        except FileNotFoundError:
            raise StatisticsError(f"{path} is missing") from None
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise StatisticsError(f"{path}: {error}") from error
