"""Archives on the device against the eager model on the CPU."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
import torch

from archive.read import unpack
from bench.answers import actions
from bench.gpu.part import Findings, Run, said
from bench.policies import in_process, of_architecture, robot_requests
from export.export import Options, archived
from loadtest.document import Table
from vla.models import ARCHITECTURES
from vla_runtime.policy import Policy
from vla_runtime.spec import Format, Precision

# Largest difference of a GPU's actions from the CPU's, in normalised units.
ALLOWED: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.2}
# Most cases at a time, each in a process of its own, and the cores of each.
PROCESSES, CORES_EACH = 5, 3


class Case(msgspec.Struct, frozen=True):
    """One architecture in one format and precision."""

    architecture: str
    format: Format
    precision: Precision
    graphs: bool = False
    # Largest difference of an action, in normalised units.
    difference: float | None = None
    # Why there is none, where there is none.
    skipped: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the archive answers as the model does; nothing is known of one that was skipped."""
        return bool(self.skipped) or (
            self.difference is not None and self.difference <= ALLOWED[self.precision]
        )

    @property
    def says(self) -> str:
        """The difference, or why there is none."""
        said = self.skipped or self.error or f"{self.difference:.1e}"
        return said if self.ok else f"{said} **failed**"


def parity(run: Run) -> Findings:
    """Compare archives of every architecture, as far as the time goes."""
    cases = list(_cases(run))
    processes = min(PROCESSES, max(1, len(os.sched_getaffinity(0)) // CORES_EACH))
    found = list(cases)
    with ThreadPoolExecutor(processes) as threads:  # each waits for its cases' process
        shares = [cases[first::processes] for first in range(processes)]
        for first, share in enumerate(threads.map(partial(_apart, run), shares)):
            found[first::processes] = share
    about = (
        "Actions of the archive on this device against the eager model on the CPU, largest difference in "
        "normalised units, five requests in a batch and one alone."
    )
    rows = [(c.architecture, c.format, c.precision, c.says, "yes" if c.graphs else "no") for c in found]
    table = Table(("architecture", "format", "precision", "difference", "graphs"), rows)
    return Findings.of([about, table], found, ok=all(case.ok for case in found))


def _cases(run: Run) -> Iterator[Case]:
    """Yield what is compared."""
    if run.on_gpu:  # what takes longest, so that it is begun first
        yield from (Case(name, "pt2", "float32") for name in ("grounded", "flow", "realtime"))
    yield from (Case(name, "torchscript", "float32") for name in ARCHITECTURES)
    yield from (Case(name, "torchscript", "bfloat16") for name in ARCHITECTURES)


def _apart(run: Run, cases: list[Case]) -> list[Case]:
    """Compare in a process of its own: one that dies, as a device's error can make it, costs one case."""
    found: list[Case] = []
    while len(found) < len(cases):
        with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (CORES_EACH,)) as process:
            try:
                for case in cases[len(found) :]:
                    compared = msgspec.structs.replace(case, skipped="time")
                    if not run.spent:
                        compared = process.submit(_compared, run.device, case).result()
                    found.append(compared)
                    run.say(f"{case.architecture} {case.format} {case.precision}: {compared.says}")
            except BrokenProcessPool as error:
                found.append(msgspec.structs.replace(cases[len(found)], error=said(error)))
    return found


def _compared(device: str, case: Case) -> Case:
    requests = robot_requests(5)
    try:
        source = of_architecture(case.architecture)
        eager = actions(in_process(source, "cpu"), requests)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            options = Options(
                "random weights",
                folder / "policy.mar",
                buckets=(1, 2, 4, 8),
                format=case.format,
                precision=case.precision,
                device="cuda" if device != "cpu" and case.format == "pt2" else "cpu",
                tolerance=1e-2 if case.precision == "float32" else 1.0,
            )
            archived(source, options)
            policy = Policy.load(unpack(options.output, folder / "unpacked"), device)
            policy.warm_up()
            got = np.concatenate([actions(policy, requests), actions(policy, requests[:1])])
    except Exception as error:  # whatever it is, it belongs into the report
        return msgspec.structs.replace(case, error=said(error))
    difference = float(np.abs(got - np.concatenate([eager, eager[:1]])).max())
    return msgspec.structs.replace(case, difference=difference, graphs=policy.graphs)
