"""Is a served answer the one that the archive records? As far as rounding goes, by the kind of action."""

import math
from collections.abc import Sequence
from typing import Any

# Of archives that state no tolerance: in the actions' units, or in probability.
DEFAULT_TOLERANCE = 1e-3


def mismatch(policy: dict[str, Any], actions: Sequence[Any]) -> str | None:
    """Say how the answer to the archived example differs from its record; None: it does not.

    Args:
        policy: the archive's policy.json, whose provenance says how far numbers may differ
        actions: of the answer: T lists of A numbers, or T named actions with their probabilities
    """
    recorded, names = policy["example"]["actions"], policy["example"].get("names")
    if names:
        chosen = [action["name"] for action in actions]
        if chosen != list(names):
            return f"the archived answer is {', '.join(names)}, got {', '.join(chosen)}"
        actions = [action["probabilities"] for action in actions]
    if [len(row) for row in actions] != [len(row) for row in recorded]:
        return f"the archived answer has {_shape(recorded)} numbers, got {_shape(actions)}"
    stated = policy.get("provenance", {}).get("example_tolerance", {})
    units = stated.get("units") or [DEFAULT_TOLERANCE] * len(recorded[0])
    off = [[abs(a - b) for a, b in zip(*rows, strict=True)] for rows in zip(actions, recorded, strict=True)]
    shares = [d / unit for row in off for d, unit in zip(row, units, strict=True)]
    judged = sum(shares) / len(shares) if stated.get("judged_by") == "mean_difference" else max(shares)
    if judged <= 1 and math.isfinite(judged):
        return None
    most = max(map(max, off))
    return f"{judged:.2g} times what rounding explains, it differs from the archived answer by {most:.2g}"


def _shape(rows: Sequence[Sequence[float]]) -> str:
    return f"{len(rows)} x {len(rows[0]) if rows else 0}"
