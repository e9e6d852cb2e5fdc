"""The statistics of OpenVLA and Octo, `dataset_statistics.json`, for a policy of one's own.

action = normalised(ContinuousSpace(dimensions=..., normalisation="identity", ...), path, "bridge_orig")
"""

from pathlib import Path
from typing import Literal

from export.errors import ExportError
from export.foreign.processors import converted, read_json
from export.foreign.statistics import Found, V, numbers, with_statistics
from vla_runtime.vectors import Normalisation

# Names of a rule's two statistics in these files.
FILE_NAMES: dict[Normalisation, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "quantiles": (("q01", "p01"), ("q99", "p99")),
    "mean_std": (("mean",), ("std",)),
    "bounds": (("min",), ("max",)),
}


def normalised(
    vector: V,
    path: Path,
    dataset: str | None = None,
    *,
    key: Literal["action", "proprio"] = "action",
    rule: Literal["quantiles", "mean_std", "bounds"] = "quantiles",
) -> V:
    """Return a vector with a dataset's statistics; where their mask is false, the dimension passes as it is.

    As `0.5 * (a + 1) * (q99 - q01) + q01`, OpenVLA's `unnorm`, without an epsilon.

    Args:
        vector: its dimensions, of any normalisation
        path: `dataset_statistics.json`, or a `config.json` with `norm_stats`
        dataset: whose statistics; may be left out where the file has those of one
        key: actions, or the state
        rule: what the policy was trained with: quantiles (OpenVLA), or mean and standard deviation (Octo)

    Raises:
        ExportError: there is no such file, dataset or entry.
        SpecError: the statistics normalise nothing sensible.
    """
    file = read_json(path)
    stats = file.get("norm_stats", file)
    known = sorted(name for name, entry in stats.items() if isinstance(entry, dict) and key in entry)
    if key in stats:  # a file of one dataset, unnamed
        entry = stats[key]
    elif dataset in known or (dataset is None and len(known) == 1):
        entry = stats[dataset or known[0]][key]
    else:
        raise ExportError(f"{path} has no {key} of dataset {dataset!r}; it has: {', '.join(known) or 'none'}")
    first, second = (numbers(entry, names, path) for names in FILE_NAMES[rule])
    mask = entry.get("mask")
    mask = None if mask is None else converted(path, mask, tuple[bool, ...])
    return with_statistics(vector, Found(rule, first, second, mask), path)
