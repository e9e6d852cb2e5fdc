"""The archived example: a request, and the answer that was recorded at export."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_runtime.actions import ActionChunk, example_tolerance
from vla_runtime.errors import SpecError
from vla_runtime.observation import Row, image_fields
from vla_runtime.spec import BinnedSpace, PolicySpec


def example_row(spec: PolicySpec, folder: Path) -> Row:
    """Return the example of an unpacked archive as the request that a client would send."""
    example = spec.example
    row: dict[str, object] = {"command": example.command} if spec.tokenizer else {}
    row["seed"] = example.seed
    for camera, files in example.images.items():
        steps = (files,) if isinstance(files, str) else files
        fields = image_fields(camera, spec)
        row |= {field: (folder / file).read_bytes() for field, file in zip(fields, steps, strict=True)}
    return row | ({"state": example.state} if spec.state else {})


def check_recorded(chunk: ActionChunk, spec: PolicySpec) -> None:
    """Hold the answer to the example against the recorded one.

    Raises:
        SpecError: they differ by more than rounding.
    """
    recorded = _table(spec.example.actions)
    shape, tolerance = chunk.recordable.shape, example_tolerance(spec)
    if recorded.shape != shape:
        raise SpecError(f"the archived example has shape {recorded.shape}, got {shape}")
    # Rounded to 8 bits, two bins that are nearly as likely may change places, however far apart.
    rounded = isinstance(spec.action, BinnedSpace) and spec.artifact.precision != "float32"
    difference = chunk.difference(recorded, typical=rounded)
    if not difference <= tolerance:
        raise SpecError(
            f"the archived example is answered differently: by {difference:.2g} in normalised units, "
            f"at most {tolerance:.4g} is allowed"
        )


def _table(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Return an example's recorded actions: float32 [T, A].

    Raises:
        SpecError: the rows differ in length.
    """
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise SpecError(f"example.actions must have rows of one length, got {lengths}")
    return np.asarray(rows, np.float32)
