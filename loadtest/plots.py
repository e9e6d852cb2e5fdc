"""The report's plots, as SVG that stands inside a page."""

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

if TYPE_CHECKING:
    from loadtest.report import Report

mpl.use("svg")

from matplotlib import pyplot, ticker  # the back end is chosen first

INK, MUTED, GRID = "#1c2733", "#66727f", "#e3e7eb"
BLUE, ORANGE, RED, GREEN, PALE = "#2563a8", "#d97917", "#c0322b", "#2f855a", "#9fc1e5"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    # Paths, not text: the page looks the same without the font.
    "svg.fonttype": "path",
    # Equal reports give equal bytes.
    "svg.hashsalt": "vla-serve",
    "figure.constrained_layout.use": True,
}
WIDE, HALF = (9.6, 2.7), (4.7, 2.5)


def latency(report: "Report") -> str:
    """Latency percentiles over time, with the tier's bounds."""
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=WIDE)
        times = [second.time_s + 0.5 for second in report.seconds]
        for name, colour in (("p50", PALE), ("p95", BLUE), ("p99", ORANGE)):
            values = [getattr(second, f"{name}_ms") for second in report.seconds]
            axes.plot(
                times, [float("nan") if v is None else v for v in values], color=colour, label=name, lw=1.6
            )
        for name, bound in report.tier.latency_ms.items():
            axes.axhline(bound, color=RED, lw=1, ls="--", label=f"bound of {name}")
        _over_time(axes, report, "latency [ms]")
        return _svg(figure)


def throughput(report: "Report") -> str:
    """Right answers and errors over time."""
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=WIDE)
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
        return _svg(figure)


def batches(report: "Report") -> str:
    """How many answers came from batches of which size."""
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=HALF)
        axes.bar(list(report.batch_sizes), list(report.batch_sizes.values()), 0.8, color=BLUE)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(12, integer=True))
        axes.set_xlabel("requests in a batch")
        axes.set_ylabel("answers")
        return _svg(figure)


def memory(report: "Report") -> str:
    """The server's memory over time, with the tier's bound."""
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=HALF)
        times = [moment.time_s for moment in report.memory]
        axes.plot(
            times,
            [moment.resident_gib for moment in report.memory],
            color=GREEN,
            label="workers, resident",
            lw=1.6,
        )
        accelerator = [moment.accelerator_gib for moment in report.memory]
        if any(value is not None for value in accelerator):
            axes.plot(times, [value or 0.0 for value in accelerator], color=BLUE, label="accelerator", lw=1.6)
        axes.axhline(report.tier.memory_gib, color=RED, lw=1, ls="--", label="bound")
        _over_time(axes, report, "memory [GiB]")
        axes.legend(loc="center right", bbox_to_anchor=(1, 0.6))
        return _svg(figure)


def errors(report: "Report") -> str:
    """Requests by class of error."""
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(9.6, 0.7 + 0.3 * len(report.judgement.errors)))
        classes = list(report.judgement.errors)[::-1]
        bars = axes.barh(classes, [report.judgement.errors[name] for name in classes], 0.7, color=RED)
        axes.bar_label(bars, padding=4, color=INK)
        axes.grid(visible=False)
        axes.set_xlabel("requests")
        return _svg(figure)


def capacity(report: "Report") -> str:
    """The search's runs: latency over robots, kept or not."""
    assert report.capacity is not None
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=WIDE)
        for verdict, colour, marker in (
            ("kept", GREEN, "o"),
            ("missed", RED, "X"),
            ("not judged", MUTED, "s"),
        ):
            trials = [t for t in report.capacity.trials if t.verdict == verdict]
            axes.plot(
                [t.robots for t in trials],
                [t.latency_ms or float("nan") for t in trials],
                marker,
                color=colour,
                label=verdict,
            )
            for t in trials:
                if t.interval_ms:
                    axes.plot([t.robots, t.robots], t.interval_ms, color=colour, lw=1)
        name, bound = next(iter(report.tier.latency_ms.items()))
        axes.axhline(bound, color=RED, lw=1, ls="--", label=f"bound of {name}")
        axes.axvline(report.capacity.robots, color=INK, lw=1, ls=":", label="robots per host")
        axes.set_xlabel("robots")
        axes.set_ylabel(f"latency {name} [ms]")
        axes.set_ylim(bottom=0)
        axes.legend(ncols=5, loc="upper left", bbox_to_anchor=(0, 1.16))
        return _svg(figure)


def _over_time(axes: Any, report: "Report", label: str) -> None:
    """Finish a plot over time: the part before the measurement is shaded, outages are red."""
    start = min(
        [second.time_s for second in report.seconds] + [moment.time_s for moment in report.memory], default=0
    )
    axes.axvspan(start, 0, color=GRID, alpha=0.6, lw=0)
    for outage in report.judgement.outages:
        axes.axvspan(outage.start_s, outage.start_s + outage.duration_s, color=RED, alpha=0.15, lw=0)
    axes.set_xlim(start, report.tier.duration_s)
    axes.set_ylim(0, 1.1 * axes.dataLim.y1 or 1.0)
    axes.set_xlabel("time [s]; grey: ramp and warm-up")
    axes.set_ylabel(label)
    axes.legend(ncols=4, loc="upper left", bbox_to_anchor=(0, 1.16))


def _svg(figure: Any) -> str:
    """Return the figure as an SVG element, without the XML declaration that a page must not repeat."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
