"""Runs targets in a process of their own, which may die or hang, and keeps every input that was too much."""

import faulthandler
import hashlib
import random
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from fuzz.target import Target

# One input may take so much of a core's time, and so long before its process is ended [s].
SLOW_S, HANG_S = 1.0, 30.0
# Inputs that are handed over at once.
CHUNK = 200

Load = Callable[[], Mapping[str, Target]]


@dataclass(frozen=True)
class Finding:
    """An input that a target did not stand."""

    target: str
    index: int
    # What was raised and where; the same for inputs that find the same.
    kind: str
    detail: str


@dataclass
class Report:
    """What one target's inputs became of."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    # The most that one input took [s of a core].
    slowest_s: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Add another part of the same run; of findings of one kind the first is kept."""
        self.inputs += other.inputs
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.outcomes += other.outcomes
        for finding in other.findings:
            if all(known.kind != finding.kind for known in self.findings):
                self.findings.append(finding)


def case(target: Target, seed: int, index: int) -> bytes:
    """Make one input of a run again."""
    draw = random.Random(f"{seed}/{target.name}/{index}")
    return target.make(target.seeds, target.words, draw)


def examine(target: Target, data: bytes, index: int, report: Report) -> None:
    """Check one input."""
    began_s = time.thread_time()
    try:
        outcome = target.check(data)
    except Exception as error:
        outcome = "finding"
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
        report.findings.append(Finding(target.name, index, kind, traceback.format_exc()))
    took_s = time.thread_time() - began_s
    if took_s > SLOW_S:
        report.findings.append(Finding(target.name, index, "slow", f"took {took_s:.1f} s of a core"))
    report.inputs += 1
    report.slowest_s = max(report.slowest_s, took_s)
    report.outcomes[outcome] += 1


def fuzz(load: Load, name: str, seed: int, duration_s: float, most: int | None = None) -> Report:
    """Try inputs on one target for a while.

    Args:
        load: makes the targets, in a process of their own
        name: the target's
        seed: of the run: equal seeds give equal inputs
        duration_s: how long
        most: inputs to try at most
    """
    report, began_s, start, died = Report(name), time.monotonic(), 0, None
    last = most or 1 << 62
    while start < last and time.monotonic() - began_s < duration_s:
        with _process(load) as (pool, current):
            try:
                while start < last and time.monotonic() - began_s < duration_s:
                    # Up to what its predecessor died of, which is passed over.
                    count = min(CHUNK, last - start) if died is None else died - start
                    report.add(pool.submit(_chunk, name, seed, start, count).result())
                    start += count
                    if died is not None:
                        start, died = start + 1, None
            except BrokenProcessPool:
                died = current.value
                report.add(_death(name, died))
    report.seconds = time.monotonic() - began_s
    return report


def _death(name: str, index: int) -> Report:
    detail = f"the process died, or took more than {HANG_S:g} s"
    died = Finding(name, index, f"death at {index}", detail)
    return Report(name, 1, outcomes=Counter(finding=1), findings=[died])


def keep(finding: Finding, data: bytes, folder: Path) -> Path:
    """Write an input, and beside it what it did; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{finding.target}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(f"{finding.kind}\n{finding.detail}\n")
    return path


# --- In the process of its own


@dataclass
class _Here:
    """What the process has, from its start on."""

    targets: Mapping[str, Target] = field(default_factory=dict)
    # Number of the input under way, which its parent reads when it dies.
    current: "Synchronized[int] | None" = None


_here = _Here()


@contextmanager
def _process(load: Load) -> Iterator[tuple[ProcessPoolExecutor, "Synchronized[int]"]]:
    context = get_context("spawn")
    current = context.Value("q", 0)
    with ProcessPoolExecutor(1, context, _start, (load, current)) as pool:
        yield pool, current


def _start(load: Load, current: "Synchronized[int]") -> None:
    _here.current = current
    warnings.simplefilter("ignore")  # Pillow's, of damaged pictures
    _here.targets = load()


def _chunk(name: str, seed: int, start: int, count: int) -> Report:
    target, report, current = _here.targets[name], Report(name), _here.current
    assert current is not None
    for index in range(start, start + count):
        current.value = index
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        examine(target, case(target, seed, index), index, report)
    faulthandler.cancel_dump_traceback_later()
    return report
