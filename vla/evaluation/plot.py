"""Success by condition as a bar chart. Needs matplotlib, which only the `dev` extra installs."""

from collections.abc import Sequence
from pathlib import Path

from vla.evaluation.report import Summary

_COLOURS = {"http": "#2f6db3", "in-process": "#8fb8de", "script": "#9a9a9a"}


def plot(summaries: Sequence[Summary], path: Path) -> None:
    """Write a PNG of success rates with their 95 % Wilson intervals.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  only in the dev extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    conditions = list(dict.fromkeys(summary.condition for summary in summaries))
    figure = Figure(figsize=(1.6 + 1.3 * len(conditions), 3.6), layout="constrained")
    axes = figure.subplots()
    for source in dict.fromkeys(summary.source for summary in summaries):
        mine = [summary for summary in summaries if summary.source == source]
        rates = [100 * summary.total.value for summary in mine]
        bounds = [summary.total.interval for summary in mine]
        below = [max(0.0, rate - 100 * low) for rate, (low, _) in zip(rates, bounds, strict=True)]
        above = [max(0.0, 100 * high - rate) for rate, (_, high) in zip(rates, bounds, strict=True)]
        shift = {"http": -0.2, "in-process": 0.2}.get(source, 0.0)
        at = [conditions.index(summary.condition) + shift for summary in mine]
        axes.bar(at, rates, 0.38, yerr=(below, above), capsize=3, color=_COLOURS[source], label=source)
    axes.set_xticks(range(len(conditions)), [name.replace("_", " ") for name in conditions])
    axes.set_ylabel("success [%], 95 % interval")
    axes.set_ylim(0, 105)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    FigureCanvasAgg(figure).print_png(path)
