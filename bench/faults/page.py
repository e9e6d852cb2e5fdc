"""docs/faults.md, out of results."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.faults.setup import WAYS, Way
from bench.faults.table import Result
from loadtest.document import Table, markdown

COLUMNS: dict[Way, str] = {"deployed": "behind gate and proxy", "alone": "`python -m server` alone"}
FAULTS = """\
`make faults` provokes each of these on running processes and writes this page: {count} robots ask 10 times
a second over kept connections, each with a picture of its own, and compare every answer with the right one.
Statuses are those of the robots' requests from the fault on, until 30 requests in a row were good again.
*Lost* is a request that was taken and got no answer, *wrong* an answer with other actions than the right
ones; a robot that finds the port closed has lost nothing. *Serves again* is the time from the fault to the
first good answer after the last that was none. Servers that end are started again after 0.1 s, as a
container's runtime does. The policy is a small one that fails when it is told to; *out of memory* is an
allocation that the host refuses. The clock is Python's in gate and worker; the front end's goes on."""


def write(path: Path, results: Sequence[Result]) -> None:
    """Write the page."""
    blocks = [_measured(results), FAULTS.format(count="three"), _faults(results)] if results else []
    path.write_text(markdown("Faults and attacks", blocks))


def _faults(results: Sequence[Result]) -> Table:
    names = dict.fromkeys(result.fault for result in results)
    by_place = {(result.fault, result.way): result for result in results}
    rows = []
    for name in names:
        cells = (by_place.get((name, way)) for way in WAYS)
        rows.append((name, *("-" if result is None else _cell(result) for result in cells)))
    return Table(("fault", *COLUMNS.values()), rows)


def _cell(result: Result) -> str:
    return "; ".join(_said(result))


def _said(result: Result) -> Iterator[str]:
    seen = result.seen
    if seen is not None:
        yield ", ".join(f"{kind} x {count}" for kind, count in seen.kinds.items())
        if seen.lost or seen.wrong:
            yield f"**lost {seen.lost}, wrong {seen.wrong}**"
        if seen.again_s is None:
            yield "**does not serve again**"
        elif seen.again_s:
            yield f"serves again after {seen.again_s:.1f} s"
        elif seen.slowest_s > 1:
            yield f"longest wait {seen.slowest_s:.1f} s"
    if result.note:
        yield result.note.replace("|", "\\|")


def _measured(results: Sequence[Result]) -> str:
    """Say where and when."""
    machines: dict[tuple[object, ...], list[float]] = {}
    for result in results:
        machine: dict[str, Any] = result.machine
        key = (result.date, machine["cpu"], machine["cores"], str(machine["commit"])[:12])
        machines.setdefault(key, []).append(float(machine["load_average"]))
    lines = []
    for (date, cpu, cores, commit), loads in machines.items():
        busy = f"load average {min(loads):.1f} to {max(loads):.1f}"
        lines.append(f"Measured on {date} at {commit}: {cpu}, {cores} cores, {busy}.")
    return "\n".join(lines)
