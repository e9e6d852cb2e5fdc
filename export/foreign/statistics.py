"""Statistics files of other libraries into a vector of one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from export.errors import ExportError
from export.foreign.processors import NOTHING
from vla_runtime.spec import Statistics
from vla_runtime.vectors import Normalisation, Vector

V = TypeVar("V", bound=Vector)
# The two statistics that a rule is made of, by the rule.
NAMES: dict[Normalisation, tuple[str, str]] = {
    "mean_std": ("mean", "std"),
    "quantiles": ("q01", "q99"),
    "bounds": ("low", "high"),
}


@dataclass(frozen=True)
class Found:
    """The two statistics of a rule, one number a dimension, and which dimensions they normalise."""

    normalisation: Normalisation
    first: tuple[float, ...]
    second: tuple[float, ...]
    # False: the dimension passes as it is. None: all are normalised.
    mask: tuple[bool, ...] | None = None
    epsilon: float = 0.0


def numbers(entry: Mapping[str, Any], names: Sequence[str], path: Path) -> tuple[float, ...]:
    """Return the first of several statistics that an entry has.

    Raises:
        ExportError: it has none of them, or it is no list of numbers.
    """
    values = next((entry[name] for name in names if entry.get(name) is not None), None)
    if values is None:
        raise ExportError(f"{path} has no {' or '.join(names)}; it has: {', '.join(sorted(entry))}")
    try:
        return msgspec.convert(values, tuple[float, ...])
    except msgspec.ValidationError as error:
        raise ExportError(f"{path}: {names[0]} must be a list of numbers: {error}") from error


def with_statistics(vector: V, found: Found, path: Path) -> V:
    """Return the vector, normalised by the statistics that were found.

    Raises:
        ExportError: there are not as many as the vector has dimensions.
        SpecError: they normalise nothing sensible.
    """
    width = len(vector.dimensions)
    for values in (found.first, found.second, found.mask):
        if values is not None and len(values) != width:
            raise ExportError(
                f"{path} has {len(values)} values for the {width} dimensions: {', '.join(vector.names)}"
            )
    first, second = NAMES[found.normalisation]
    mask = found.mask or (True,) * width
    # Beside an epsilon of 0 a constant dimension needs a width, one that no float32 shows.
    least = 0.0 if found.epsilon else NOTHING
    upper = (
        max(high, least if found.normalisation == "mean_std" else low + least)
        for low, high in zip(found.first, found.second, strict=True)
    )
    statistics: dict[str, Any] = {first: found.first, second: tuple(upper)}
    return msgspec.structs.replace(
        vector,
        normalisation=found.normalisation,
        statistics=Statistics(**statistics),
        passthrough=tuple(name for name, normal in zip(vector.names, mask, strict=True) if not normal),
        epsilon=found.epsilon,
    )
