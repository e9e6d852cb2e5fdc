"""What is measured of a variant: its answers beside the float32 ones, its time, memory and success."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import torch

from bench import alone
from bench.alone import Process
from bench.answers import answers
from bench.timing import taken_s
from vla.evaluation.conditions import trials
from vla.evaluation.episodes import Setup, run_all
from vla.evaluation.policies import ArchivedPolicy
from vla.evaluation.report import Rate
from vla_runtime.observation import Row
from vla_runtime.policy import Answer, Policy

BATCHES = (1, 8, 32)
# Scenes of the closed loop, which neither training nor tuning nor the comparison of answers use.
FIRST_SCENE = 26_000_000
SHOWN = {"m": ("mm", 1000.0)}


class Measured(msgspec.Struct, frozen=True):
    """What came of one variant of one policy, but for its time."""

    variant: str
    size_bytes: int
    # Most memory that a process which runs it has had resident [MiB].
    peak_mib: float
    # To the float32 answers: mean cosine of the normalised chunks, mean absolute error by unit, and how many
    # answers are held in both or in neither.
    cosine: float
    error: dict[str, float]
    same_holds: Rate
    success: Rate


class Result(msgspec.Struct, frozen=True):
    """A variant with its time, taken in turns with all others of its policy."""

    measured: Measured
    # Batch size -> median time from prepared requests to actions [ms], see `clock`; that over the baseline's.
    batch_ms: dict[int, float]
    ratio: dict[int, float]
    # Pictures in and safe actions out, in batches of 32 in one process [requests/s].
    rate_hz: float


def clock() -> Callable[[], float]:
    """Return what times are read from: with one thread the processor's, which other programs leave alone."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def timed(policies: Mapping[str, Policy], rows: Sequence[Row], rounds: int) -> dict[str, dict[int, float]]:
    """Return the median time of a batch by policy and size [ms]; policies take turns."""
    taken = {name: {size: list[float]() for size in BATCHES} for name in policies}
    for _ in range(rounds):
        for name, policy in policies.items():
            inputs = [policy.prepare(row) for row in rows[: BATCHES[-1]]]
            for size in BATCHES:
                step = partial(policy.compute, inputs[:size])
                taken[name][size] += taken_s(step, least=max(3, 16 // size), warm_up=1, clock=clock())
    return {name: {size: 1000 * median(of[size]) for size in BATCHES} for name, of in taken.items()}


def rates(policies: Mapping[str, Policy], rows: Sequence[Row], rounds: int) -> dict[str, float]:
    """Return requests a second, from encoded pictures to safe actions in full batches, in turns."""
    size, taken = BATCHES[-1], {name: list[float]() for name in policies}
    for _ in range(rounds):
        for name, policy in policies.items():
            taken[name] += taken_s(partial(answers, policy, rows[:size]), least=2, clock=clock())
    return {name: size / median(seconds) for name, seconds in taken.items()}


def answered(policy: Policy, rows: Sequence[Row]) -> list[Answer]:
    """Answer requests in batches of 8."""
    return [one for at in range(0, len(rows), 8) for one in answers(policy, rows[at : at + 8])]


def compared(found: Sequence[Answer], wanted: Sequence[Answer]) -> dict[str, Any]:
    """Return the fields of a `Measured` that hold answers against those of float32."""
    space: Any = wanted[0].chunk.space
    ours, theirs = (
        np.array([one.chunk.actions for one in each], np.float64) for each in (found, wanted)
    )  # [N, T, A]
    missed, error = np.abs(ours - theirs).mean((0, 1)), dict[str, list[float]]()
    for dimension, value in zip(space.dimensions, missed, strict=True):
        unit, factor = SHOWN.get(dimension.unit, (dimension.unit, 1.0))
        error.setdefault(unit, []).append(factor * float(value))
    held = [[one.chunk.safety.status == "held" for one in each] for each in (found, wanted)]
    agree = sum(a == b for a, b in zip(*held, strict=True))
    return {
        "cosine": cosine(ours / space.scale, theirs / space.scale),
        "error": {unit: float(np.mean(values)) for unit, values in error.items()},
        "same_holds": Rate(agree, len(wanted)),
    }


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the mean cosine similarity of chunks [N, T, A]; two that stand still are alike."""
    a, b = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    still = (lengths[0] == 0) & (lengths[1] == 0)
    product = lengths[0] * lengths[1]
    return float(np.where(still, 1.0, (a * b).sum(1) / np.where(product == 0, 1.0, product)).mean())


def peak_mib(archive: Path) -> float:
    """Return the most memory that a process of its own needs for the policy and its batches [MiB]."""
    with Process(archive, "cpu") as process:
        process.call(alone.batch_ms, BATCHES[0])
        return process.call(alone.own_peak_mib)


def success(archive: Path, episodes: int, replan: int) -> Rate:
    """Return how many closed-loop episodes in held-out phrasings succeed."""
    todo = trials("held_out", episodes, FIRST_SCENE)
    with ArchivedPolicy(archive) as policy:
        found = run_all(todo, lambda _env: nullcontext(policy), Setup(replan), 1, archive.stem)
    return Rate(sum(one.success for one in found), len(found))
