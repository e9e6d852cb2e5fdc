"""The fault table: every fault in both ways of serving, each result kept as soon as it is there."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from bench.faults import records
from bench.faults.cases import FAULTS, Fault
from bench.faults.records import measured_on
from bench.faults.robots import Robots, Seen
from bench.faults.setup import WAYS, Places, SetUp, Way, serving
from bench.machine import Machine

# Good requests before a fault, and after it until the server counts as serving again.
BEFORE, AFTER = 30, 30
QUIET_TIMEOUT_S, AGAIN_TIMEOUT_S = 60.0, 90.0


@dataclass(frozen=True)
class Result:
    """What one fault did, one way of serving."""

    fault: str
    way: Way
    seen: Seen | None
    # What else is to be said; or why it was skipped.
    note: str
    machine: Machine


def run(folder: Path, only: Sequence[str], *, anew: bool) -> list[Result]:
    """Provoke the faults whose results are not in the folder yet, and return all results there are.

    Args:
        folder: of the results
        only: words of faults to provoke, all by default; these are provoked anew
        anew: provoke the others anew too
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [fault for fault in FAULTS if not only or any(word in fault.name for word in only)]
    missing: dict[Way, list[Fault]] = {
        way: [
            fault
            for fault in wanted
            if way in fault.ways and (anew or only or not records.file_of(folder, way, fault.name).exists())
        ]
        for way in WAYS
    }
    if any(missing.values()):
        with Places.made() as places:
            for way, faults in missing.items():
                for result in _results(way, faults, places):
                    records.keep(result, records.file_of(folder, way, result.fault))
                    print(f"{way}: {result.fault}: {_line(result)}", flush=True)
    return read(folder)


def read(folder: Path) -> list[Result]:
    """Return the results in a folder, in the table's order."""
    files = [records.file_of(folder, way, fault.name) for fault in FAULTS for way in fault.ways]
    return [msgspec.json.decode(file.read_bytes(), type=Result) for file in files if file.exists()]


def _results(way: Way, faults: Sequence[Fault], places: Places) -> Iterator[Result]:
    """Provoke those that share servers first, then each with its own."""
    shared = [fault for fault in faults if fault.serving is None]
    if shared:
        with serving(way, places) as at:
            for fault in shared:
                yield _result(fault, at, places)
    for fault in faults:
        if fault.serving is not None:
            if reason := fault.skipped():
                yield Result(fault.name, way, None, f"not provoked: {reason}", measured_on())
                continue
            with fault.serving(way, places) as at:
                yield _result(fault, at, places)


def _result(fault: Fault, at: SetUp, places: Places) -> Result:
    began = time.monotonic()
    with Robots(at.port, places.asks) as robots:
        if not robots.wait_good(began, BEFORE, QUIET_TIMEOUT_S):
            seen = Seen.of(robots.outcomes, began)
            return Result(fault.name, at.way, seen, "not served before it", measured_on())
        since_s = time.monotonic()
        note = fault.provoke(at, robots) or ""
        robots.wait_good(time.monotonic(), AFTER, AGAIN_TIMEOUT_S)
        seen = Seen.of(robots.outcomes, since_s)
    return Result(fault.name, at.way, seen, note, measured_on())


def _line(result: Result) -> str:
    if result.seen is None:
        return result.note
    return f"{asdict(result.seen)} {result.note}"


def survived(result: Result) -> bool:
    """Whether it served again, nothing was answered wrongly, and behind the proxy nothing was lost."""
    seen = result.seen
    if seen is None:
        return True
    lost = seen.lost if result.way == "deployed" else 0
    return lost == seen.wrong == 0 and seen.again_s is not None
