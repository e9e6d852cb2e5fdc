"""Archives on the device against the eager model on the CPU."""

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

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
DIED = "its process died"


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
    yield from (Case(name, "torchscript", "float32") for name in ARCHITECTURES)
    yield from (Case(name, "torchscript", "bfloat16") for name in ARCHITECTURES)
    if run.on_gpu:  # some minutes each
        yield from (Case(name, "pt2", "float32") for name in ("grounded", "flow", "realtime"))


def _apart(run: Run, cases: list[Case]) -> list[Case]:
    """Compare in a process of its own: one that dies, as a device's error can make it, costs one case."""
    found: list[Case] = []
    while len(found) < len(cases):
        context, rest = get_context("spawn"), cases[len(found) :]
        ours, theirs = context.Pipe()
        process = context.Process(target=_compare, args=(theirs, run.device, rest))
        process.start()
        theirs.close()
        for case in rest:
            found.append(_received(ours, case, run.until_s))
            run.say(f"{case.architecture} {case.format} {case.precision}: {found[-1].says}")
            if found[-1].error == DIED:
                break
        process.kill()
    return found


def _received(connection: Any, case: Case, until_s: float) -> Case:
    """Wait until a case is compared, or the time is over, or who compares it has died."""
    try:
        if not connection.poll(max(0.0, until_s - time.monotonic())):
            return msgspec.structs.replace(case, skipped="time")
        return connection.recv()
    except EOFError:
        return msgspec.structs.replace(case, error=DIED)


def _compare(connection: Any, device: str, cases: list[Case]) -> None:
    torch.set_num_threads(CORES_EACH)
    for case in cases:
        connection.send(_compared(device, case))


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
