"""The report as one HTML page: no script, no network, plots inside."""

from html import escape
from typing import TYPE_CHECKING

from loadtest import plots

if TYPE_CHECKING:
    from loadtest.report import Report

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 1000px; margin: 2rem auto; }
body { padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; } .muted { color: #66727f; }
.verdict { padding: .75rem 1rem; border-left: 6px solid; margin: 1rem 0; font-size: 1.1rem; }
.kept { border-color: #2f855a; background: #edf7f1; } .missed { border-color: #c0322b; background: #fbefee; }
.not-judged { border-color: #66727f; background: #f1f3f5; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #e3e7eb; }
td { vertical-align: top; }
th { color: #66727f; font-weight: 500; }
td.kept, td.missed, td.not-judged { background: none; border-color: #e3e7eb; font-weight: 600; }
td.kept { color: #2f855a; } td.missed { color: #c0322b; } td.not-judged { color: #66727f; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; } svg { width: 100%; height: auto; }
@media (max-width: 700px) { .pair { grid-template-columns: 1fr; } }
"""
HEADLINES = {
    "kept": "The tier is kept",
    "missed": "The tier is missed",
    "not judged": "The tier can't be judged",
}


def render(report: "Report") -> str:
    """Return the page."""
    tier, judgement = report.tier, report.judgement
    title = f"Load test: tier {report.tier_name}, {tier.robots} robots at {tier.control_hz:g} Hz"
    headline = HEADLINES[report.verdict] + (f": {', '.join(judgement.missed)}" if judgement.missed else "")
    batches = plots.batches(report) if report.batch_sizes else "<p>No right answer.</p>"
    memory = plots.memory(report) if report.memory else "<p>Could not be read.</p>"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="muted">{escape(_subtitle(report))}</p>',
        _capacity(report),
        f'<div class="verdict {_class(report.verdict)}">{escape(headline)}{_doubts(report)}</div>',
        _promises(report),
        f"<h2>Latency of right answers</h2>{_latencies(report)}{plots.latency(report)}",
        f"<h2>Throughput</h2>{plots.throughput(report)}",
        '<div class="pair">',
        f"<div><h2>Batches</h2>{batches}</div><div><h2>Memory</h2>{memory}</div>",
        "</div>",
        _errors(report),
        _server(report),
        _generator(report),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _subtitle(report: "Report") -> str:
    counts = ", ".join(f"{count} of {user}" for user, count in report.requests.items())
    return (
        f"{report.policy} at {report.url}, {report.written}; measured for {report.tier.duration_s:g} s after "
        f"{report.tier.ramp_s + report.tier.warm_up_s:g} s; requests: {counts or 'none'}"
    )


def _doubts(report: "Report") -> str:
    return "".join(f"<p>{escape(doubt)}</p>" for doubt in report.judgement.doubts)


def _promises(report: "Report") -> str:
    rows = "".join(
        f"<tr><td>{escape(p.name)}</td><td>{escape(p.promised)}</td><td>{escape(p.measured)}</td>"
        f'<td class="{_class(p.verdict)}">{p.verdict}</td></tr>'
        for p in report.judgement.promises
    )
    return f"<table><tr><th>Promise</th><th>Promised</th><th>Measured</th><th>Verdict</th></tr>{rows}</table>"


def _latencies(report: "Report") -> str:
    values = "; ".join(f"{name} {value:.1f} ms" for name, value in report.latency_ms.items())
    return f"<p>{values or 'None.'}</p>"


def _errors(report: "Report") -> str:
    if not report.judgement.errors:
        return "<h2>Errors</h2><p>None.</p>"
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{count}</td><td>{escape(report.judgement.examples[name])}</td></tr>"
        for name, count in report.judgement.errors.items()
    )
    outages = "".join(
        f"<p>Outage of {o.duration_s:.1f} s from {o.start_s:.1f} s on: "
        f"{escape(', '.join(f'{count} {name}' for name, count in o.errors.items()))}.</p>"
        for o in report.judgement.outages
    )
    table = f"<table><tr><th>Class</th><th>Requests</th><th>The first of them</th></tr>{rows}</table>"
    return f"<h2>Errors</h2>{outages}{plots.errors(report)}{table}"


def _server(report: "Report") -> str:
    if report.server is None:
        return "<h2>What the server counted</h2><p>Its metrics could not be read.</p>"
    numbers = report.server
    rows = [(f"{stage} of a batch, mean", f"{value:.2f} ms") for stage, value in numbers.stages_ms.items()]
    rows.append(("batches", str(numbers.batches)))
    if numbers.batch_size is not None:
        rows.append(("requests in a batch, mean", f"{numbers.batch_size:.2f}"))
    if numbers.command_cache_hits is not None:
        rows.append(("commands found in the cache", f"{numbers.command_cache_hits:.2%}"))
    rows.append(("deadline misses", str(numbers.deadline_misses)))
    rows += [
        (f"chunks {action} by the safety limits", str(n))
        for action, n in numbers.safety_interventions.items()
    ]
    rows += [(f"request errors, {code}", str(count)) for code, count in numbers.errors.items()]
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    note = '<p class="muted">Over the whole run, warm-up included.</p>'
    return f"<h2>What the server counted</h2>{note}<table>{cells}</table>"


def _generator(report: "Report") -> str:
    g = report.generator
    return (
        f"<h2>The load generator</h2><p>{escape(g.host)}: {g.cpu:.0%} of a core; "
        f"99 % of its requests were sent at most {g.lag_p99_ms:.1f} ms late."
        + ("" if g.bystanders is None else f" Other programs took {g.bystanders:.1f} cores meanwhile.")
        + "</p>"
    )


def _capacity(report: "Report") -> str:
    if report.capacity is None:
        return ""
    rows = "".join(
        f"<tr><td>{t.robots}</td><td>{'' if t.latency_ms is None else f'{t.latency_ms:.1f} ms'}</td>"
        f"<td>{'' if t.interval_ms is None else f'{t.interval_ms[0]:.1f} to {t.interval_ms[1]:.1f} ms'}</td>"
        f'<td class="{_class(t.verdict)}">{t.verdict}</td><td>{escape(", ".join(t.missed))}</td></tr>'
        for t in report.capacity.trials
    )
    name = next(iter(report.tier.latency_ms))
    return (
        f'<div class="verdict {"kept" if report.capacity.robots else "missed"}">Robots per host: '
        f"<b>{report.capacity.robots}</b><p>{escape(report.capacity.statement)}</p></div>"
        f"{plots.capacity(report)}<table><tr><th>Robots</th><th>{name}</th><th>95 % interval</th>"
        f"<th>Verdict</th><th>Missed</th></tr>{rows}</table><h2>One run of {report.tier.robots} robots</h2>"
    )


def _class(verdict: str) -> str:
    return verdict.replace(" ", "-")
