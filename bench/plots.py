"""Pictures of a report: latency against load, batch sizes, where the time goes."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.measure import Results
from bench.report import Report, breakdown


def draw(report: Report, folder: Path) -> None:
    """Write one PNG an archive: `<policy>.png`."""
    for results in report.results:
        figure, axes = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
        figure.suptitle(
            f"{results.policy['name']}, {results.policy['picture_pixels']} px, {report.machine['cpu']}"
        )
        _latency(axes[0], results)
        _batches(axes[1], results)
        _time(axes[2], results)
        figure.savefig(folder / f"{results.policy['name']}.png", dpi=110)
        plt.close(figure)


def _latency(axes: Axes, results: Results) -> None:
    """Latency against throughput: closed loop, and arrivals that do not wait for answers."""
    for name, loads, marker in (
        ("closed loop", results.closed, "o"),
        ("Poisson arrivals", results.open, "s"),
    ):
        rates = [load.answers.rate_hz for load in loads.values()]
        for quantile, style in (("p50_ms", "-"), ("p95_ms", "--")):
            values = [getattr(load.answers.latency, quantile) for load in loads.values()]
            axes.plot(rates, values, style, marker=marker, label=f"{name}, {quantile[:3]}")
    best = max(results.alone.policy_hz.values())
    axes.axvline(best, color="grey", linestyle=":", label=f"in-process {best:.0f}/s")
    axes.set(xlabel="requests/s", ylabel="latency [ms]", yscale="log", title="latency against load")
    axes.legend(fontsize=8)


def _batches(axes: Axes, results: Results) -> None:
    """Share of requests computed in batches of each size, by number of clients."""
    for clients, load in results.closed.items():
        sizes = load.answers.batch_sizes
        total = sum(sizes.values())
        axes.plot(
            list(sizes), [count / total for count in sizes.values()], marker=".", label=f"{clients} clients"
        )
    axes.set(xlabel="batch size", ylabel="share of requests", title="batch sizes")
    axes.legend(fontsize=8)


def _time(axes: Axes, results: Results) -> None:
    """Stages of a request, alone and under load."""
    spent = breakdown(results.lone[0], results.closed[max(results.closed)].answers)
    left = [0.0] * len(spent)
    for stage in spent["lone"]:
        widths = [stages[stage] for stages in spent.values()]
        axes.barh(list(spent), widths, left=left, label=stage)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.set(
        xlabel="ms", xscale="symlog", title=f"where the time goes ({max(results.closed)} clients: loaded)"
    )
    axes.legend(fontsize=8)
