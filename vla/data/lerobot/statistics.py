"""Statistics of columns, as LeRobot computes them: of each episode, then joined.

A quantile is read from a histogram of an episode, and a data set's is the mean of its episodes', weighted by
their frames: not the quantile of all frames, but what LeRobot's policies are normalised by.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Summary = dict[str, NDArray]

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
BINS = 5000
# Pictures of an episode that are looked at: all of so few, else frames to this power, up to so many.
FEWEST, POWER, MOST = 100, 0.75, 10_000
# Pictures from this edge on are thinned to about the second [pixels].
LARGE, THINNED = 300, 150


def of_vectors(values: NDArray) -> Summary:
    """Summarise float or integer [n, D]; every entry is float64 [D], and `count` int64 [1]."""
    values = values.astype(np.float64)
    count = np.array([len(values)])
    mean, std = values.mean(0), values.std(0)
    summary = {"min": values.min(0), "max": values.max(0), "mean": mean, "std": std, "count": count}
    if len(values) < 2:
        return summary | {name: mean.copy() for name in QUANTILES}
    quantiles = np.stack([_quantiles(column) for column in values.T], axis=1)  # [quantiles, D]
    return summary | dict(zip(QUANTILES, quantiles, strict=True))


def of_pictures(pictures: Sequence[Image.Image]) -> Summary:
    """Summarise the channels of an episode's pictures, in [0, 1]: float64 [3, 1, 1]."""
    rows = [_thinned(np.asarray(pictures[index])) for index in _looked_at(len(pictures))]
    summary = of_vectors(np.concatenate(rows))
    scaled = {name: (value / 255)[:, None, None] for name, value in summary.items() if name != "count"}
    return scaled | {"count": np.array([len(rows)])}


def joined(summaries: Sequence[Summary]) -> Summary:
    """Join the summaries of a column's episodes into the data set's."""
    parts = {name: np.stack([each[name] for each in summaries]) for name in summaries[0]}
    counts = parts["count"].reshape(-1, *[1] * (parts["mean"].ndim - 1))
    total = counts.sum()
    mean = (parts["mean"] * counts).sum(0) / total
    variance = ((parts["std"] ** 2 + (parts["mean"] - mean) ** 2) * counts).sum(0) / total
    quantiles = {name: (parts[name] * counts).sum(0) / total for name in QUANTILES}
    low, high, count = parts["min"].min(0), parts["max"].max(0), parts["count"].sum(0)
    return {
        "min": low,
        "max": high,
        "mean": mean,
        "std": np.sqrt(variance),
        "count": count,
    } | quantiles


def _quantiles(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the quantiles by linear interpolation inside the bins of a histogram: float64 [quantiles]."""
    edges = np.linspace(column.min() - 1e-10, column.max() + 1e-10, BINS + 1)
    counts, _ = np.histogram(column, edges)
    below = np.cumsum(counts)
    wanted = np.array(list(QUANTILES.values())) * len(column)
    bins = np.searchsorted(below, wanted)
    inside = (wanted - (below[bins] - counts[bins])) / np.maximum(counts[bins], 1)
    values = edges[bins] + inside * (edges[bins + 1] - edges[bins])
    return np.where(bins == 0, edges[0], values)


def _looked_at(frames: int) -> list[int]:
    count = max(min(FEWEST, frames), min(int(frames**POWER), MOST))
    return np.round(np.linspace(0, frames - 1, count)).astype(int).tolist()


def _thinned(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the pixels, uint8 [M, 3], of a picture, uint8 [H, W, 3]."""
    longest = max(pixels.shape[:2])
    step = 1 if longest < LARGE else longest // THINNED
    return pixels[::step, ::step].reshape(-1, 3)
