"""docs/faults.md, out of results."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.faults import attackers, beside, memory, table
from bench.faults.robots import counted
from bench.faults.setup import WAYS, Way
from loadtest.document import Block, Table, markdown

Measured = table.Result | beside.Result | memory.Result

ORDER = ("Faults", "Attacks", "Overload", "Memory")
COLUMNS: dict[Way, str] = {"deployed": "behind gate and proxy", "alone": "`python -m server` alone"}
FAULTS = """\
`make faults` provokes each of these on running processes and writes this page: three robots ask 10 times
a second over kept connections, each with a picture of its own, and compare every answer with the right one.
Statuses are those of the robots' requests from the fault on, until 30 requests in a row were good again.
*Lost* is a request that was taken and got no answer, *wrong* an answer with other actions than the right
ones; a robot that finds the port closed has lost nothing. *Serves again* is the time from the fault to the
first good answer after the last that was none. Servers that end are started again after 0.1 s, as a
container's runtime does. The policy is a small one that fails when it is told to; *out of memory* is an
allocation that the host refuses. The clock is Python's in gate and worker; the front end's goes on."""


ATTACKS = """\
`make faults ARGS=--attacks` runs each attack beside eight robots that ask 10 times a second with another
key, through the proxy with its default settings. Servers have one half of the cores, robots and attackers
the other; attackers, in a process of their own, send as fast as they are answered. *Errors* are the robots'
answers that were no 200 or not the right one; the target is none. The ratio is the robots' p95 during the
attack over that right before it, in the same run; the target is at most 1.5. What an archive may unpack to
is no matter of requests: a test of the swap covers it."""
OVERLOAD = """\
`make faults ARGS=--overload`: many connections of one key send good requests as fast as they are answered,
from other cores than the server's; eight robots of another key ask 10 times a second. First they ask again at
once when they are refused: after 100 refusals within a second they get the next ones a second late, on
purpose. Then they wait as long as `Retry-After` says."""
MEMORY = """\
`make faults ARGS='--memory 100000'`: resident memory over that many answered requests of 16 connections
through the proxy, as a straight line after the first fifth."""


@dataclass(frozen=True)
class Found:
    """All results that there are."""

    faults: Sequence[table.Result]
    attacks: Sequence[beside.Result] = ()
    overload: Sequence[beside.Result] = ()
    growth: memory.Result | None = None


def write(path: Path, found: Found) -> None:
    """Write the page; a section without results stays as it was."""
    sections = _sections(path.read_text()) if path.exists() else {}
    for name, blocks in _written(found):
        sections[name] = markdown("", blocks)
    ordered = (f"## {name}\n\n{sections[name]}" for name in ORDER if name in sections)
    path.write_text("\n".join(["# Faults and attacks\n", *ordered]))


def _sections(text: str) -> dict[str, str]:
    parts = (part.partition("\n\n") for part in text.split("\n## ")[1:])
    return {name: rest.rstrip("\n") + "\n" for name, _, rest in parts}


def _written(found: Found) -> Iterator[tuple[str, list[Block]]]:
    """Yield the sections that there are results of."""
    if found.faults:
        yield "Faults", [FAULTS, _measured(found.faults), _faults(found.faults)]
    if found.attacks:
        yield "Attacks", [ATTACKS, _measured(found.attacks), _attacks(found.attacks)]
    if found.overload:
        yield "Overload", [OVERLOAD, _measured(found.overload), _overload(found.overload)]
    if found.growth:
        yield "Memory", [MEMORY, _measured([found.growth]), _memory(found.growth)]


def _attacks(results: Sequence[beside.Result]) -> Table:
    asked = ("attack", "connections", "seconds")
    noticed = ("robots' errors", "quiet p50, p95 [ms]", "beside it", "ratio", "attackers got")
    rows = [
        (
            result.attack,
            str(result.connections),
            f"{result.seconds:g}",
            result.beside.failed,
            result.quiet.times,
            result.beside.times,
            result.ratio,
            ", ".join(f"{status} x {count}" for status, count in sorted(result.found.answers.items())),
        )
        for result in results
    ]
    return Table((*asked, *noticed), rows)


def _overload(results: Sequence[beside.Result]) -> Table:
    names = ("connections", "asked by the greedy key [1/s]", "answered to it with 200 [1/s]")
    times = (
        "its answers, p50, p95 [ms]",
        "its refusals (429), p50, p95 [ms]",
        "each refusal with Retry-After",
    )
    robots = ("the robots, quiet, p50, p95 [ms]", "beside it, p50, p95 [ms]", "their p95 over the quiet one")
    lines = (*names, *times, "other statuses", *robots, "the robots' errors")
    columns = [_overloaded(result) for result in results]
    rows = [(line, *cells) for line, *cells in zip(lines, *columns, strict=True)]
    return Table(("under overload", *(result.attack for result in results)), rows)


def _overloaded(result: beside.Result) -> tuple[str, ...]:
    found = result.found
    asked, answered = sum(found.answers.values()), found.answers.get("200", 0)
    others = {status: count for status, count in found.answers.items() if status not in ("200", "429")}
    return (
        str(result.connections),
        f"{asked / result.seconds:.0f}",
        f"{answered / result.seconds:.0f}",
        _times(found, "200"),
        _times(found, "429"),
        "yes" if found.retry_after else "no",
        str(others or "none"),
        result.quiet.times,
        result.beside.times,
        f"{result.ratio:.2f}",
        result.beside.failed,
    )


def _times(found: attackers.Found, status: str) -> str:
    if status not in found.p50_s:
        return "none"
    return f"{1000 * found.p50_s[status]:.0f}, {1000 * found.p95_s[status]:.0f}"


def _memory(result: memory.Result) -> Table:
    rows = [
        (name, f"{mib[0]:.0f}", f"{mib[-1]:.0f}", f"{result.slope_mib(name):+.2f}")
        for name, mib in result.resident_mib.items()
    ]
    count = f"after {result.requests[-1]} requests"
    return Table(("process", "at first [MiB]", count, "for each 10,000 requests"), rows)


def _faults(results: Sequence[table.Result]) -> Table:
    names = dict.fromkeys(result.fault for result in results)
    by_place = {(result.fault, result.way): result for result in results}
    rows = []
    for name in names:
        cells = (by_place.get((name, way)) for way in WAYS)
        rows.append((name, *("-" if result is None else "; ".join(_said(result)) for result in cells)))
    return Table(("fault", *COLUMNS.values()), rows)


def _said(result: table.Result) -> Iterator[str]:
    seen = result.seen
    if seen is not None:
        yield counted(seen.kinds)
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


def _measured(results: Sequence[Measured]) -> str:
    """Say where and when."""
    machines: dict[tuple[object, ...], list[float]] = {}
    for result in results:
        machine = result.machine
        key = (machine["date"], machine["cpu"], machine["cores"], str(machine["commit"])[:12])
        machines.setdefault(key, []).append(float(machine["load_average"] or 0.0))
    lines = []
    for (date, cpu, cores, commit), loads in machines.items():
        busy = f"load average {min(loads):.1f} to {max(loads):.1f}"
        line = f"Measured on {date} at {commit}: {cpu}, {cores} cores, {busy}."
        if max(loads) > 2 * int(str(cores)):
            line += " Other programs wanted the same cores: times and ratios are not to be quoted."
        lines.append(line)
    return "\n".join(lines)
