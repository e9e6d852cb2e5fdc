"""openpi's statistics, `norm_stats.json`, into a vector."""

from pathlib import Path
from typing import Any, Literal

from export.errors import ExportError
from export.foreign.processors import read_json
from export.foreign.statistics import NAMES, Found, V, numbers, with_statistics

# What openpi's `Normalize` and `Unnormalize` add to a range or standard deviation, in both directions.
EPSILON = 1e-6
Key = Literal["state", "actions"]


def entry(path: Path, key: Key) -> dict[str, Any]:
    """Return the statistics of one vector.

    Raises:
        ExportError: there is no such file, or it has none.
    """
    found = read_json(path)
    found = found.get("norm_stats", found)
    if not isinstance(found, dict) or not isinstance(found.get(key), dict):
        raise ExportError(f"{path} has no statistics of {key!r}; it has: {', '.join(found)}")
    return found[key]


def normalised(
    vector: V,
    path: Path,
    key: Key,
    rule: Literal["mean_std", "quantiles"] = "mean_std",
) -> V:
    """Return a vector with openpi's statistics, as its `Normalize` and `Unnormalize` use them.

    Dimensions beyond the statistics are not normalised, statistics beyond the dimensions not used, as there.
    Whether a model takes quantiles stands in openpi's code: pi0 does not, pi0.5 and pi0-FAST do. Delta
    actions, gripper flips and joint signs are code too (`relative` of a `Dimension` says the first).

    Args:
        vector: its dimensions, of any normalisation
        path: `norm_stats.json`
        key: the entry
        rule: mean and standard deviation, or q01 and q99

    Raises:
        ExportError: there is no such file or entry.
        SpecError: the statistics normalise nothing sensible.
    """
    found, width = entry(path, key), len(vector.dimensions)
    low, high = (numbers(found, [name], path)[:width] for name in NAMES[rule])
    beyond = width - len(low)
    # What these numbers make of a dimension is not used: it passes.
    low, high = (*low, *[0.0] * beyond), (*high, *[1.0] * beyond)
    mask = tuple(place < width - beyond for place in range(width))
    return with_statistics(vector, Found(rule, low, high, mask, EPSILON), path)
