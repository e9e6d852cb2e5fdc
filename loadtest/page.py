"""The report of a load test for people."""

from collections.abc import Iterator

from loadtest import plots
from loadtest.document import Block, Plots, Table, Verdict
from loadtest.judge import Judgement
from loadtest.report import Report
from loadtest.search import Capacity

HEADLINES = {
    "kept": "The tier is kept",
    "missed": "The tier is missed",
    "not judged": "The tier can't be judged",
}


def title(report: Report) -> str:
    """Return what was measured, in one line."""
    tier = report.tier
    return f"Load test: tier {report.tier_name}, {tier.robots} robots at {tier.control_hz:g} Hz"


def blocks(report: Report) -> Iterator[Block]:
    """Yield the report's parts."""
    tier, judgement = report.tier, report.judgement
    requests = ", ".join(f"{count} of {user}" for user, count in report.requests.items()) or "none"
    yield (
        f"{report.policy} at {report.url}, {report.written}; measured for {tier.duration_s:g} s after "
        f"{tier.ramp_s + tier.warm_up_s:g} s; requests: {requests}"
    )
    if report.capacity:
        yield from _capacity(report, report.capacity)
    missed = f": {', '.join(judgement.missed)}" if judgement.missed else ""
    yield Verdict(report.verdict, HEADLINES[report.verdict] + missed, judgement.doubts)
    yield promises(judgement)
    yield Plots({"Latency of right answers": plots.latency(report)})
    latencies = "; ".join(f"{name} {value:.1f} ms" for name, value in report.latency_ms.items())
    yield f"Latency of right answers: {latencies or 'none'}."
    yield Plots({"Throughput": plots.throughput(report)})
    batches = plots.batches(report) if report.batch_sizes else "<p>No right answer.</p>"
    memory = plots.memory(report) if report.memory else "<p>Could not be read.</p>"
    yield Plots({"Batches": batches, "Memory": memory})
    yield "## Errors"
    yield from _errors(report)
    yield "## What the server counted"
    yield from _server(report)
    yield "## The load generator"
    yield from _generator(report)


def promises(judgement: Judgement) -> Table:
    """Return what was promised and what was measured."""
    rows = [(p.name, p.promised, p.measured, p.verdict) for p in judgement.promises]
    return Table(("promise", "promised", "measured", "verdict"), rows)


def _capacity(report: Report, capacity: Capacity) -> Iterator[Block]:
    verdict = "kept" if capacity.robots else "missed"
    yield Verdict(verdict, f"Robots per host: {capacity.robots}", [capacity.statement])
    yield Plots({"Runs of the search": plots.capacity(report)})
    rows = [
        (
            str(t.robots),
            "" if t.latency_ms is None else f"{t.latency_ms:.1f} ms",
            "" if t.interval_ms is None else f"{t.interval_ms[0]:.1f} to {t.interval_ms[1]:.1f} ms",
            t.verdict,
            ", ".join(t.missed),
        )
        for t in capacity.trials
    ]
    name = next(iter(report.tier.latency_ms))
    yield Table(("robots", name, "95 % interval", "verdict", "missed"), rows)
    yield f"## One run of {report.tier.robots} robots"


def _errors(report: Report) -> Iterator[Block]:
    errors, examples = report.judgement.errors, report.judgement.examples
    if not errors:
        yield "None."
        return
    for outage in report.judgement.outages:
        said = ", ".join(f"{count} {name}" for name, count in outage.errors.items())
        yield f"Outage of {outage.duration_s:.1f} s from {outage.start_s:.1f} s on: {said}."
    yield Plots({"Requests": plots.errors(report)})
    rows = [(name, str(count), examples[name]) for name, count in errors.items()]
    yield Table(("class", "requests", "the first of them"), rows)


def _server(report: Report) -> Iterator[Block]:
    numbers = report.server
    if numbers is None:
        yield "Its metrics could not be read."
        return
    yield "Over the whole run, warm-up included."
    rows = [(f"{stage} of a batch, mean [ms]", f"{value:.2f}") for stage, value in numbers.stages_ms.items()]
    rows.append(("batches", str(numbers.batches)))
    if numbers.batch_size is not None:
        rows.append(("requests in a batch, mean", f"{numbers.batch_size:.2f}"))
    if numbers.command_cache_hits is not None:
        rows.append(("commands found in the cache", f"{numbers.command_cache_hits:.2%}"))
    rows.append(("deadline misses", str(numbers.deadline_misses)))
    for action, count in numbers.safety_interventions.items():
        rows.append((f"chunks {action} by the safety limits", str(count)))
    rows += [(f"request errors, {code}", str(count)) for code, count in numbers.errors.items()]
    yield Table(("what", "value"), rows)


def _generator(report: Report) -> Iterator[Block]:
    generator = report.generator
    said = (
        f"{generator.cpu:.0%} of a core; 99 % of its requests were sent at most "
        f"{generator.lag_p99_ms:.1f} ms late."
    )
    if generator.bystanders is not None:
        said += f" Other programs took {generator.bystanders:.1f} cores meanwhile."
    yield said
    yield ", ".join(f"{name} {value}" for name, value in generator.host.items())
