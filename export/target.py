"""What an artifact is to be: chosen at export, recorded in its spec."""

from dataclasses import dataclass
from typing import Literal

from vla_runtime.spec import Format, Precision


@dataclass(frozen=True)
class Target:
    """An artifact before it is made."""

    # The largest bucket: it takes 1 to so many observations.
    largest_batch: int
    format: Format = "torchscript"
    precision: Precision = "float32"
    # Where it is traced or compiled, and compared.
    device: Literal["cpu", "cuda"] = "cpu"
    # The output that holds the chunk: "actions", or "logits" of a discrete policy.
    output: str = "actions"
