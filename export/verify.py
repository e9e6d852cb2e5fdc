"""Eager model against saved artifact: batch sizes and inputs that were not traced, several seeds."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from export.errors import ExportError
from export.trace import TRACED_BATCH, Batch
from vla.models import Sizes

SEEDS = (1, 2)


@torch.inference_mode()
def verify(
    model: nn.Module,
    path: Path,
    sizes: Sizes,
    largest_batch: int,
    tolerance: float,
    *,
    stochastic: bool = False,
) -> dict[str, Any]:
    """Compare every output at batch sizes 1, 3 and the largest.

    Args:
        model: the eager model, in evaluation mode
        path: the saved artifact
        sizes: the policy's sizes
        largest_batch: the largest bucket
        tolerance: largest allowed absolute difference of any output, in the outputs' own (normalised) units
        stochastic: whether the policy reads noise

    Returns:
        what was compared and the largest difference, for the archive's provenance

    Raises:
        ExportError: an output is missing, not finite, or differs in shape or value.
    """
    artifact = torch.jit.load(str(path)).eval()
    batch_sizes = sorted({1, 3, largest_batch} - {TRACED_BATCH})
    differences = {
        (count, seed): _difference(
            model, artifact, Batch.random(sizes, count, seed, stochastic=stochastic), sizes
        )
        for count in batch_sizes
        for seed in SEEDS
    }
    largest = max(differences.values())
    if not largest <= tolerance:
        count, seed = max(differences, key=lambda key: differences[key])
        raise ExportError(
            f"the artifact differs from the model by {largest:.2g} at batch size {count} (seed {seed}); "
            f"at most {tolerance:g} is allowed. The trace froze something: keep `act` and `encode_command` "
            f"free of branches, loops and Python numbers that depend on their inputs"
        )
    return {"batch_sizes": batch_sizes, "seeds": SEEDS, "largest_difference": largest, "tolerance": tolerance}


def _difference(model: nn.Module, artifact: Any, batch: Batch, sizes: Sizes) -> float:
    """Return the largest absolute difference of two answers of the same names and shapes."""
    expected, got, count = batch.run(model), _run(artifact, batch), len(batch.ids)
    shapes = {name: list(value.shape) for name, value in got.items()}
    wanted = {name: list(value.shape) for name, value in expected.items()}
    wanted["actions"] = [count, sizes.horizon, sizes.action]
    if shapes != wanted:
        raise ExportError(
            f"at batch size {count} the artifact returns {shapes} instead of {wanted}: "
            f"its batch size is baked in"
        )
    if not all(torch.isfinite(value).all() for value in got.values()):
        raise ExportError(f"at batch size {count} the artifact returns values that are not finite")
    return max((expected[name] - got[name]).abs().max().item() for name in expected)


def _run(artifact: Any, batch: Batch) -> dict[str, torch.Tensor]:
    try:
        return batch.run(artifact)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ExportError(
            f"the artifact was traced at batch size {TRACED_BATCH} and fails at {len(batch.ids)}: "
            f"its batch size is baked in ({reason})"
        ) from error
