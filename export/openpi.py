"""openpi's statistics, `assets/<asset_id>/norm_stats.json`, for a policy of one's own.

state = normalised(Vector(dimensions=..., normalisation="identity", statistics=Statistics()), path, "state")
"""

from pathlib import Path
from typing import Literal

from export.errors import ExportError
from export.foreign.processors import read_json
from export.foreign.statistics import NAMES, Found, V, numbers, with_statistics

# What openpi's `Normalize` and `Unnormalize` add to a range or standard deviation, in both directions.
EPSILON = 1e-6


def normalised(
    vector: V,
    path: Path,
    key: Literal["state", "actions"],
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
    stats = read_json(path)
    stats = stats.get("norm_stats", stats)
    if not isinstance(stats, dict) or not isinstance(stats.get(key), dict):
        raise ExportError(f"{path} has no statistics of {key!r}; it has: {', '.join(stats)}")
    width = len(vector.dimensions)
    low, high = (numbers(stats[key], [name], path)[:width] for name in NAMES[rule])
    beyond = width - len(low)
    # What these numbers make of a dimension is not used: it passes.
    low, high = (*low, *[0.0] * beyond), (*high, *[1.0] * beyond)
    mask = tuple(place < width - beyond for place in range(width))
    return with_statistics(vector, Found(rule, low, high, mask, EPSILON), path)
