"""The figures as JSON and as Markdown tables, held against their targets."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.load import Answers
from bench.measure import Ceilings, Lone, Results
from bench.served import Load

# What serving may cost, see `targets`.
SERVED_SHARE = 0.90
OVERHEAD_MS = 4.0
CACHED_GAIN = 1.3
DIP = 0.10
# The shares of throughput are promised for policies that compute at least so long for one request [ms].
LARGE_MS = 15.0
# Latencies that robots per host are counted within [ms].
ROBOTS_P95_MS = (50.0, 200.0)


@dataclass(frozen=True)
class Report:
    """One run of the benchmark."""

    machine: dict[str, Any]
    ceilings: Ceilings
    results: list[Results]
    # Mean number of processes that wanted a core in the last minute of the run.
    load_average_after: float
    took_s: float


@dataclass(frozen=True)
class Target:
    """A promise, and what was measured."""

    name: str
    wanted: str
    measured: str
    met: bool


def write(report: Report, folder: Path) -> None:
    """Write report.json and report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    (folder / "report.md").write_text(markdown(report))


def targets(results: Results) -> list[Target]:
    """Hold one archive's figures against the targets."""
    share, gain, dip = results.served_share, results.cached_gain, results.dip
    found = [Target("more clients, less throughput", f"<= {DIP:.0%}", f"{dip:.0%}", dip <= DIP)]
    # Most of a small policy's request is HTTP, and its commands are quickly encoded.
    if results.alone.artifact.p50_ms >= LARGE_MS:
        wanted = f">= {SERVED_SHARE:.2f}"
        found += [
            Target("served / in-process throughput", wanted, f"{share:.2f}", share >= SERVED_SHARE),
            Target("cached / uncached throughput", f">= {CACHED_GAIN:g}", f"{gain:.2f}", gain >= CACHED_GAIN),
        ]
    for lone in results.lone:
        if lone.kind == "30KB":
            name = f"lone request over in-process, p50, 30 KB {lone.body}"
            wanted, measured = f"<= {OVERHEAD_MS:g} ms", f"{lone.overhead_ms:.1f} ms"
            found.append(Target(name, wanted, measured, lone.overhead_ms <= OVERHEAD_MS))
    return found


def missed(report: Report) -> list[Target]:
    """Return the targets that some archive misses."""
    return [target for results in report.results for target in targets(results) if not target.met]


def markdown(report: Report) -> str:
    """Lay the report out for people."""
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items() if value is not None)
    lines = [
        "# Benchmark",
        "",
        f"{machine}; {report.took_s:.0f} s, load average at the end {report.load_average_after}.",
        "",
        *_ceilings(report.ceilings),
    ]
    for results in report.results:
        lines += _section(results)
    return "\n".join(lines) + "\n"


def breakdown(lone: Lone, loaded: Answers) -> dict[str, dict[str, float]]:
    """Say where a request's time goes [ms]: for a lone one, and under load.

    The front end's share is what no stage of the worker explains of a lone request; the queue is by how much
    longer a request takes under load to reach the worker.
    """
    alone = lone.load.answers
    share = lone.split.decode_ms / max(1e-9, lone.split.decode_ms + lone.split.resize_ms)
    computed = sum(alone.stages_ms[stage] for stage in ("preprocess", "inference", "postprocess"))
    front_end = max(0.0, alone.latency.p50_ms - computed)
    found = {}
    for name, answers in (("lone", alone), ("loaded", loaded)):
        stages = answers.stages_ms
        found[name] = {
            "client encode": lone.encode_ms,
            "front end": front_end,
            "queue": max(0.0, stages["queue"] - alone.stages_ms["queue"]),
            "decode": stages["preprocess"] * share,
            "preprocess": stages["preprocess"] * (1 - share),
            "inference": stages["inference"],
            "postprocess": stages["postprocess"],
        }
    return found


def _ceilings(ceilings: Ceilings) -> Iterator[str]:
    generator = ceilings.generator
    yield "Without a policy, 16 to 32 clients:"
    yield ""
    yield from _table("what", "requests/s", "generator CPU [ms]", "front end CPU [ms]")
    yield _row(
        "load generator against an endpoint that does nothing",
        generator.rate_hz,
        generator.generator_cpu_ms,
        "",
    )
    for body, load in ceilings.front_end.items():
        cpu = load.answers.generator_cpu_ms
        yield _row(f"TorchServe, empty handler, {body}", load.answers.rate_hz, cpu, load.front_end_cpu_ms)
    yield ""


def _section(results: Results) -> Iterator[str]:
    policy, alone = results.policy, results.alone
    how = f"{policy['picture_pixels']} px, {policy['precision']}, {policy['threads']} threads"
    yield f"## {policy['name']}, {how}"
    yield ""
    yield from _table("target", "wanted", "measured", "met")
    for target in targets(results):
        yield _row(target.name, target.wanted, target.measured, "yes" if target.met else "**no**")
    yield ""
    rounds = ", ".join(f"{one.served_share:.2f}" for one in results.rounds)
    cached = ", ".join(f"{one.cached_gain:.2f}" for one in results.rounds)
    yield f"Served over in-process in each round: {rounds}; cached over uncached: {cached}."
    yield ""
    yield "Peak memory [MiB]: " + ", ".join(f"{name} {mib:.0f}" for name, mib in results.peak_mib.items())
    within = ", ".join(
        f"{results.robots(p95_ms):.0f} with p95 inside {p95_ms:g} ms" for p95_ms in ROBOTS_P95_MS
    )
    yield f"Robots at 10 Hz by the open loop's highest rate that kept the limit: {within}."
    yield ""
    yield from _table("in-process", "p50 [ms]", "p95 [ms]", *(f"{bucket}" for bucket in alone.policy_hz))
    yield _row("artifact", alone.artifact.p50_ms, alone.artifact.p95_ms, *alone.artifact_hz.values())
    yield _row(
        "artifact + preprocessing", alone.policy.p50_ms, alone.policy.p95_ms, *alone.policy_hz.values()
    )
    yield ""
    yield "The numbered columns are observations/s in batches of that size."
    yield ""
    yield from _lone(results.lone)
    yield from _loads(results)
    yield from _breakdown(results)


def _lone(lone: list[Lone]) -> Iterator[str]:
    yield from _table(
        "one client", "KB", "p50 [ms]", "p95 [ms]", "p99 [ms]", "in-process p50 [ms]", "overhead [ms]"
    )
    for one in lone:
        latency = one.load.answers.latency
        yield _row(
            f"{one.kind} {one.body}", one.kilobytes, latency.p50_ms, latency.p95_ms, latency.p99_ms,
            one.alone.p50_ms, one.overhead_ms,
        )  # fmt: skip
    yield ""


def _loads(results: Results) -> Iterator[str]:
    columns = ("requests/s", "p50 [ms]", "p95 [ms]", "p99 [ms]", "failed", "mean batch")
    yield from _table("load", *columns, "front end CPU [ms]", "worker CPU [ms]", "generator CPU [ms]")
    for clients, load in results.closed.items():
        yield _load_row(f"{clients} clients", load)
    for kind, load in results.saturated.items():
        yield _load_row(f"saturated, {kind}", load)
    for index, one in enumerate(results.rounds, 1):
        yield _load_row(f"saturated, round {index} (in-process {one.alone_hz:.1f}/s)", one.served)
        yield _load_row(f"commands never seen before, round {index}", one.uncached)
    for rate, load in results.open.items():
        yield _load_row(f"Poisson arrivals at {rate:.1f}/s", load)
    yield ""


def _load_row(name: str, load: Load) -> str:
    answers, latency = load.answers, load.answers.latency
    return _row(
        name, answers.rate_hz, latency.p50_ms, latency.p95_ms, latency.p99_ms, str(answers.failed),
        mean_batch(answers), load.front_end_cpu_ms, load.worker_cpu_ms, answers.generator_cpu_ms,
    )  # fmt: skip


def mean_batch(answers: Answers) -> float:
    """Return the mean size of the batches that were computed."""
    batches = sum(count / size for size, count in answers.batch_sizes.items())
    return sum(answers.batch_sizes.values()) / batches if batches else 0.0


def _breakdown(results: Results) -> Iterator[str]:
    loaded = results.closed[max(results.closed)].answers
    spent = breakdown(results.lone[0], loaded)
    yield from _table(f"where the time goes [ms], {results.lone[0].kind}", *spent["lone"])
    for name, stages in spent.items():
        label = f"{max(results.closed)} clients" if name == "loaded" else "one client"
        yield _row(label, *stages.values())
    yield ""


def _table(*columns: str) -> Iterator[str]:
    yield _row(*columns)
    yield _row(*["---"] * len(columns))


def _row(*cells: str | float) -> str:
    return "| " + " | ".join(cell if isinstance(cell, str) else _number(cell) for cell in cells) + " |"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
