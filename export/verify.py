"""Eager model against compiled artifact: batch sizes and inputs that were not traced, several seeds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from export.batch import Batch, Layout
from export.errors import ExportError
from export.target import Target
from export.trace import TRACED_BATCH
from vla_runtime.module import Module
from vla_runtime.spec import ActionSpace, DiscreteSpace, Precision

# A batch, and the outputs of the model for it.
Answered = tuple[Batch, dict[str, Tensor]]
SEEDS = (1, 2)
# A batch that takes longer is worth a line of progress [s].
SLOW_S = 5.0
# Allowed difference in the outputs' own (normalised) units: the largest in float32, the root mean square in
# what rounds, where 8 bits round every product to 0.4 % and 4 bits to 6 %. Indices count as different or not:
# by their share.
TOLERANCES: dict[Precision, float] = {
    "float32": 1e-4,
    "bfloat16": 0.05,
    "int8": 0.05,
    "int8_static": 0.1,
    "int8_weights": 0.05,
    "int4_weights": 0.2,
}


@dataclass(frozen=True)
class Parity:
    """How far the artifact is from the eager model in float32."""

    batch_sizes: tuple[int, ...]
    # Of every output: largest and root mean square difference; share of indices that differ, twice.
    largest: dict[str, float]
    typical: dict[str, float]
    # Of the chunk [T, A], or of the probabilities of its names [T, V]: largest and mean difference a
    # dimension, float32 [A] or [V], normalised.
    chunk_largest: Tensor
    chunk_mean: Tensor
    # What the artifact took for each batch size: the fastest of its batches [s].
    took_s: dict[int, float]

    def judged(self, precision: Precision) -> float:
        """Return the number that the precision's tolerance limits."""
        return max((self.largest if precision == "float32" else self.typical).values())

    def summary(self) -> dict[str, float]:
        """Return the largest and the root mean square difference of any output, in normalised units."""
        return {
            "largest_difference": max(self.largest.values()),
            "root_mean_square": max(self.typical.values()),
        }

    def loss(self, space: ActionSpace) -> dict[str, dict[str, float]]:
        """Return the largest and mean difference of each dimension in its unit, or of each probability."""
        if isinstance(space, DiscreteSpace):
            names, scale = [f"{name} [probability]" for name in space.names], [1.0] * space.width
        else:
            names = [f"{dimension.name} [{dimension.unit}]" for dimension in space.dimensions]
            scale = space.scale.tolist()
        width = len(names)  # beyond it a policy may pad
        most, mean = self.chunk_largest[:width].tolist(), self.chunk_mean[:width].tolist()
        columns = zip(names, scale, most, mean, strict=True)
        return {name: {"largest": unit * most, "mean": unit * mean} for name, unit, most, mean in columns}


@torch.inference_mode()
def verify(
    model: Module,
    artifact: Module,
    layout: Layout,
    target: Target,
    *,
    tolerance: float,
    examples: Sequence[Batch] = (),
) -> Parity:
    """Compare every output at batch sizes 1, 3 and the largest, and on the examples.

    Args:
        model: the eager model, in evaluation mode and float32, on the target's device
        artifact: the loaded artifact
        layout: the shapes of what they take
        target: what the artifact is to be
        tolerance: allowed difference, as TOLERANCES explains it
        examples: further inputs to compare on

    Raises:
        ExportError: an output is missing, not finite, or differs in shape or value.
    """
    return compare(answered(model, layout, target, examples), artifact, layout, target, tolerance)


@torch.inference_mode()
def answered(
    model: Module,
    layout: Layout,
    target: Target,
    examples: Sequence[Batch],
    *,
    say: Callable[[str], None] = print,
) -> list[Answered]:
    """Return the batches to compare on, each with the model's answer; after this the model is not needed.

    A slow model's progress is said.

    Raises:
        ExportError: the model fails on one.
    """
    random = [
        Batch.random(layout, count, seed, target.device) for count in batch_sizes(target) for seed in SEEDS
    ]
    batches = (*random, *examples)
    try:
        return [
            (batch, _timed(batch, model, say, f"the model, {place} of {len(batches)}")[0])
            for place, batch in enumerate(batches, 1)
        ]
    except Exception as error:
        raise ExportError(f"the model fails on random inputs: {str(error).strip()[:500]}") from error


@torch.inference_mode()
def compare(
    answers: Sequence[Answered],
    artifact: Module,
    layout: Layout,
    target: Target,
    tolerance: float,
    *,
    say: Callable[[str], None] = print,
) -> Parity:
    """Compare an artifact with what the model answered; see `verify`."""
    pairs: list[dict[str, tuple[Tensor, Tensor]]] = []
    took_s: dict[int, float] = {}
    for place, (batch, expected) in enumerate(answers, 1):
        got, seconds = _run(artifact, batch, say, f"the artifact, {place} of {len(answers)}")
        count = len(batch.ids)
        took_s[count] = min(seconds, took_s.get(count, seconds))
        pairs.append(_paired(count, expected, got, layout, target.output))
    parity = _measure(pairs, target.output, batch_sizes(target), took_s)
    if not parity.judged(target.precision) <= tolerance:
        raise ExportError(_too_different(parity, target.precision, tolerance))
    return parity


def batch_sizes(target: Target) -> tuple[int, ...]:
    """Return the batch sizes that are compared."""
    return tuple(sorted({1, 3, target.largest_batch} - {TRACED_BATCH}))


def _paired(
    count: int, expected: dict[str, Tensor], got: dict[str, Tensor], layout: Layout, output: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return both answers to one batch by output, after checking their names and shapes."""
    shapes = {name: list(value.shape) for name, value in got.items()}
    wanted = {name: list(value.shape) for name, value in expected.items()}
    wanted[output] = [count, layout.horizon, layout.action]
    if shapes != wanted:
        raise ExportError(
            f"at batch size {count} the artifact returns {shapes} instead of {wanted}: "
            f"its batch size is baked in"
        )
    if not all(torch.isfinite(value).all() for value in got.values()):
        raise ExportError(f"at batch size {count} the artifact returns values that are not finite")
    return {name: (value.cpu(), got[name].cpu()) for name, value in expected.items()}


def _timed(
    batch: Batch, module: Module, say: Callable[[str], None], what: str
) -> tuple[dict[str, Tensor], float]:
    """Return the answer to one batch, and what it took [s]."""
    began = time.monotonic()
    found = batch.run(module)
    took = time.monotonic() - began
    if took > SLOW_S:
        say(f"computed a batch of {len(batch.ids)} by {what}: {took:.0f} s")
    return found, took


def _run(
    artifact: Module, batch: Batch, say: Callable[[str], None], what: str
) -> tuple[dict[str, Tensor], float]:
    try:
        return _timed(batch, artifact, say, what)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ExportError(
            f"the artifact was traced at batch size {TRACED_BATCH} and fails at {len(batch.ids)}: "
            f"its batch size is baked in ({reason})"
        ) from error


def _measure(
    answers: Sequence[dict[str, tuple[Tensor, Tensor]]],
    output: str,
    batch_sizes: tuple[int, ...],
    took_s: dict[int, float],
) -> Parity:
    largest, typical = {}, {}
    for name in answers[0]:
        pairs = [answer[name] for answer in answers]
        differences = torch.cat([_difference(*pair).flatten() for pair in pairs])
        share = not pairs[0][0].is_floating_point()
        largest[name] = (differences.mean() if share else differences.max()).item()
        typical[name] = (differences.mean() if share else differences.square().mean().sqrt()).item()
    pairs = [answer[output] for answer in answers]
    if output == "logits":
        pairs = [(torch.softmax(a, -1), torch.softmax(b, -1)) for a, b in pairs]
    chunk = torch.cat([_difference(*pair).flatten(0, 1) for pair in pairs])  # [B * T, A]
    return Parity(batch_sizes, largest, typical, chunk.amax(0), chunk.mean(0), took_s)


def _difference(expected: Tensor, got: Tensor) -> Tensor:
    """Return absolute differences float32 [...]: of indices, 1 where they are not equal."""
    return (expected - got).abs().float() if expected.is_floating_point() else (expected != got).float()


def _too_different(parity: Parity, precision: Precision, tolerance: float) -> str:
    differences = parity.largest if precision == "float32" else parity.typical
    name = max(differences, key=lambda key: differences[key])
    difference = f"the artifact's {name} differs from the model's by {differences[name]:.2g}"
    if precision != "float32":
        return (
            f"{difference} (root mean square) in {precision}; at most {tolerance:g} is allowed: "
            f"use float32, or allow more by --tolerance"
        )
    return (
        f"{difference}; at most {tolerance:g} is allowed. The export froze something: keep `act` and "
        f"`encode_command` free of branches, loops and Python numbers that depend on their inputs"
    )
