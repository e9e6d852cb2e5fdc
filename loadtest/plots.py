"""The plots of a load test."""

from typing import Any

from matplotlib import ticker

from loadtest.figure import BLUE, GREEN, GRID, HALF, INK, MUTED, ORANGE, PALE, RED, figure, legend
from loadtest.report import Report

NAN = float("nan")


@figure()
def latency(axes: Any, report: Report) -> None:
    """Latency percentiles over time, with the tier's bounds."""
    times = [second.time_s + 0.5 for second in report.seconds]
    for name, colour in (("p50", PALE), ("p95", BLUE), ("p99", ORANGE)):
        values = [second.latency_ms.get(name, NAN) for second in report.seconds]
        axes.plot(times, values, color=colour, label=name, lw=1.6)
    for name, bound in report.tier.latency_ms.items():
        axes.axhline(bound, color=RED, lw=1, ls="--", label=f"bound of {name}")
    _over_time(axes, report, "latency [ms]")


@figure()
def throughput(axes: Any, report: Report) -> None:
    """Right answers and errors over time."""
    times = [second.time_s for second in report.seconds]
    answers = [second.answers for second in report.seconds]
    failures = [second.failures for second in report.seconds]
    axes.bar(times, answers, 0.9, align="edge", color=PALE, label="right answers")
    if any(failures):
        axes.bar(times, failures, 0.9, align="edge", bottom=answers, color=RED, label="errors")
    if report.tier.scenario != "eager":
        asked = report.tier.robots * report.tier.control_hz
        axes.axhline(asked, color=INK, lw=1, ls="--", label=f"asked for: {asked:g} a second")
    _over_time(axes, report, "requests a second")


@figure(HALF)
def batches(axes: Any, report: Report) -> None:
    """How many answers came from batches of which size."""
    axes.bar(list(report.batch_sizes), list(report.batch_sizes.values()), 0.8, color=BLUE)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(12, integer=True))
    axes.set(xlabel="requests in a batch", ylabel="answers")


@figure(HALF)
def memory(axes: Any, report: Report) -> None:
    """The server's memory over time, with the tier's bound."""
    times = [moment.time_s for moment in report.memory]
    resident = [moment.resident_gib for moment in report.memory]
    axes.plot(times, resident, color=GREEN, label="workers, resident", lw=1.6)
    accelerator = [moment.accelerator_gib for moment in report.memory]
    if any(value is not None for value in accelerator):
        axes.plot(times, [value or 0.0 for value in accelerator], color=BLUE, label="accelerator", lw=1.6)
    axes.axhline(report.tier.memory_gib, color=RED, lw=1, ls="--", label="bound")
    _over_time(axes, report, "memory [GiB]")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.6))


@figure()
def errors(axes: Any, report: Report) -> None:
    """Requests by class of error."""
    classes = list(report.judgement.errors)[::-1]
    bars = axes.barh(classes, [report.judgement.errors[name] for name in classes], 0.7, color=RED)
    axes.bar_label(bars, padding=4, color=INK)
    axes.grid(visible=False)
    axes.set_xlabel("requests")


@figure()
def capacity(axes: Any, report: Report) -> None:
    """The search's runs: latency over robots, kept or not."""
    assert report.capacity is not None
    for verdict, colour, marker in (("kept", GREEN, "o"), ("missed", RED, "X"), ("not judged", MUTED, "s")):
        trials = [t for t in report.capacity.trials if t.verdict == verdict]
        values = [t.latency_ms or NAN for t in trials]
        axes.plot([t.robots for t in trials], values, marker, color=colour, label=verdict)
        for t in trials:
            if t.interval_ms:
                axes.plot([t.robots, t.robots], t.interval_ms, color=colour, lw=1)
    name, bound = next(iter(report.tier.latency_ms.items()))
    axes.axhline(bound, color=RED, lw=1, ls="--", label=f"bound of {name}")
    axes.axvline(report.capacity.robots, color=INK, lw=1, ls=":", label="robots per host")
    axes.set(xlabel="robots", ylabel=f"latency {name} [ms]")
    axes.set_ylim(bottom=0)
    legend(axes)


def _over_time(axes: Any, report: Report, label: str) -> None:
    """Finish a plot over time: the part before the measurement is shaded, outages are red."""
    start = min([moment.time_s for moment in (*report.seconds, *report.memory)], default=0)
    axes.axvspan(start, 0, color=GRID, alpha=0.6, lw=0)
    for outage in report.judgement.outages:
        axes.axvspan(outage.start_s, outage.start_s + outage.duration_s, color=RED, alpha=0.15, lw=0)
    axes.set_xlim(start, report.tier.duration_s)
    axes.set_ylim(0, 1.1 * axes.dataLim.y1 or 1.0)
    axes.set(xlabel="time [s]; grey: ramp and warm-up", ylabel=label)
    legend(axes)
