"""The figures as a report, held against their targets."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench import plots
from bench.figures import Ceilings, Lone, Results
from bench.load import Answers
from bench.served import Load
from loadtest.document import Block, Plots, Table

# What serving may cost, see `targets`.
SERVED_SHARE = 0.90
OVERHEAD_MS = 4.0
CACHED_GAIN = 1.3
DIP = 0.10
# The shares of throughput are promised for policies that compute at least so long for one request [ms].
LARGE_MS = 15.0


@dataclass(frozen=True)
class Report:
    """One run of the benchmark."""

    ceilings: Ceilings
    results: list[Results]
    took_s: float


@dataclass(frozen=True)
class Target:
    """A promise, and what was measured."""

    name: str
    wanted: str
    measured: str
    met: bool


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


def blocks(report: Report) -> Iterator[Block]:
    """Yield the report's parts."""
    yield f"The run took {report.took_s:.0f} s."
    yield from _ceilings(report.ceilings)
    for results in report.results:
        yield from _section(results)


def breakdown(lone: Lone, loaded: Answers) -> dict[str, dict[str, float]]:
    """Say where a request's time goes [ms]: for a lone one, and under load.

    The front end's share is what no stage of the worker explains of a lone request; the queue is by how much
    longer a request takes under load to reach the worker.
    """
    alone = lone.load.answers
    share = lone.split.decode_ms / max(1e-9, lone.split.decode_ms + lone.split.resize_ms)
    computed = sum(alone.stages_ms[stage] for stage in ("preprocess", "inference", "postprocess"))
    found = {}
    for name, stages in (("one client", alone.stages_ms), ("loaded", loaded.stages_ms)):
        found[name] = {
            "client encode": lone.encode_ms,
            "front end": max(0.0, alone.latency.p50_ms - computed),
            "queue": max(0.0, stages["queue"] - alone.stages_ms["queue"]),
            "decode": stages["preprocess"] * share,
            "preprocess": stages["preprocess"] * (1 - share),
            "inference": stages["inference"],
            "postprocess": stages["postprocess"],
        }
    return found


def _ceilings(ceilings: Ceilings) -> Iterator[Block]:
    generator, name = ceilings.generator, "load generator against an endpoint that does nothing"
    rows: list[tuple[str | float, ...]] = [(name, generator.rate_hz, generator.generator_cpu_ms, "")]
    for body, load in ceilings.front_end.items():
        cpu_ms = (load.answers.generator_cpu_ms, load.front_end_cpu_ms)
        rows.append((f"TorchServe, empty handler, {body}", load.answers.rate_hz, *cpu_ms))
    yield "Without a policy, 16 to 32 clients:"
    yield Table(("what", "requests/s", "generator CPU [ms]", "front end CPU [ms]"), rows)


def _section(results: Results) -> Iterator[Block]:
    policy, alone = results.policy, results.alone
    how = f"{policy.picture_pixels} px, {policy.precision}, {policy.threads} threads"
    yield f"## {policy.name}, {how}"
    judged = [(t.name, t.wanted, t.measured, "kept" if t.met else "missed") for t in targets(results)]
    yield Table(("target", "wanted", "measured", "verdict"), judged)
    rounds = ", ".join(f"{one.served_share:.2f}" for one in results.rounds)
    cached = ", ".join(f"{one.cached_gain:.2f}" for one in results.rounds)
    yield f"Served over in-process in each round: {rounds}; cached over uncached: {cached}."
    peaks = ", ".join(f"{name} {mib:.0f}" for name, mib in results.peak_mib.items())
    yield f"Peak memory [MiB]: {peaks}; the gate, a thread of this benchmark, is in none of them."
    yield "How many robots the host carries: `make loadtest ARGS=--find-robots`."
    yield "In-process; the numbered columns are observations/s in batches of that size:"
    rows = [
        ("artifact", alone.artifact.p50_ms, alone.artifact.p95_ms, *alone.artifact_hz.values()),
        ("artifact + preprocessing", alone.policy.p50_ms, alone.policy.p95_ms, *alone.policy_hz.values()),
    ]
    yield Table(("in-process", "p50 [ms]", "p95 [ms]", *map(str, alone.policy_hz)), rows)
    columns = ("one client", "KB", "p50 [ms]", "p95 [ms]", "p99 [ms]", "in-process p50 [ms]", "overhead [ms]")
    yield Table(columns, [_lone_row(lone) for lone in results.lone])
    columns = ("requests/s", "p50 [ms]", "p95 [ms]", "p99 [ms]", "failed", "mean batch")
    cpu_ms = ("front end CPU [ms]", "worker CPU [ms]", "generator CPU [ms]")
    yield Table(("load", *columns, *cpu_ms), [_load_row(name, load) for name, load in _loads(results)])
    most = max(results.closed)
    spent = breakdown(results.lone[0], results.closed[most].answers)
    columns = (f"where the time goes [ms], {results.lone[0].kind}", *spent["loaded"])
    rows = [(name.replace("loaded", f"{most} clients"), *stages.values()) for name, stages in spent.items()]
    yield Table(columns, rows)
    yield Plots(
        {"Latency against load": plots.latency(results), "Batches": plots.batches(results)}
        | {"Where the time goes": plots.stages(spent)}
    )


def _loads(results: Results) -> Iterator[tuple[str, Load]]:
    for clients, load in results.closed.items():
        yield f"{clients} clients", load
    for kind, load in results.saturated.items():
        yield f"saturated, {kind}", load
    for index, one in enumerate(results.rounds, 1):
        yield f"saturated, round {index} (in-process {one.alone_hz:.1f}/s)", one.served
        yield f"commands never seen before, round {index}", one.uncached
    for rate, load in results.open.items():
        yield f"Poisson arrivals at {rate:.1f}/s", load


def _lone_row(lone: Lone) -> tuple[str | float, ...]:
    latency = lone.load.answers.latency
    served = (latency.p50_ms, latency.p95_ms, latency.p99_ms)
    return f"{lone.kind} {lone.body}", lone.kilobytes, *served, lone.alone.p50_ms, lone.overhead_ms


def _load_row(name: str, load: Load) -> tuple[str | float, ...]:
    answers, latency = load.answers, load.answers.latency
    served = (answers.rate_hz, latency.p50_ms, latency.p95_ms, latency.p99_ms, answers.failed)
    cpu_ms = (load.front_end_cpu_ms, load.worker_cpu_ms, answers.generator_cpu_ms)
    return name, *served, answers.mean_batch, *cpu_ms
