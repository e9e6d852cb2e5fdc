"""Success over rounds as a picture: each seed thin, all seeds together thick with their 95 % interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vla.evaluation.report import Rate

COLOURS = ("#2f6db3", "#c8553d", "#5b8c5a", "#9a9a9a")


class Judged(NamedTuple):
    """A policy's success at one point of its curve."""

    seed: int
    # Where on the horizontal axis.
    at: int
    rate: Rate


def pooled(points: Sequence[Judged]) -> dict[int, Rate]:
    """Add the seeds' episodes up at every place that all of them have reached."""
    seeds = {point.seed for point in points}
    found = {}
    for at in sorted({point.at for point in points}):
        rates = [point.rate for point in points if point.at == at]
        if len(rates) == len(seeds):
            found[at] = Rate(sum(rate.successes for rate in rates), sum(rate.episodes for rate in rates))
    return found


def draw(path: Path, curves: Mapping[str, Sequence[Judged]], axis: str, title: str) -> None:
    """Draw a curve for each name.

    Args:
        path: of the PNG
        curves: the policies judged, by the name of the curve
        axis: what the horizontal axis says
        title: of the vertical axis

    Raises:
        ModuleNotFoundError: matplotlib is not installed; it comes with the extra `dev`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  only in the dev extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    draw_rates(axes, curves)
    axes.set(xlabel=axis, ylabel=title)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure).print_png(path)


def draw_rates(axes: Any, curves: Mapping[str, Sequence[Judged]]) -> None:
    """Draw a curve for each name into a diagram of matplotlib's."""
    for (name, points), colour in zip(curves.items(), COLOURS, strict=False):
        for seed in sorted({point.seed for point in points}):
            mine = sorted(point for point in points if point.seed == seed)
            axes.plot(
                [point.at for point in mine],
                [100 * point.rate.value for point in mine],
                color=colour,
                alpha=0.35,
                linewidth=0.8,
            )
        total = pooled(points)
        rates = [100 * rate.value for rate in total.values()]
        low, high = zip(*(rate.interval for rate in total.values()), strict=True)
        axes.plot(list(total), rates, color=colour, linewidth=2, marker="o", markersize=4, label=name)
        axes.fill_between(
            list(total), [100 * each for each in low], [100 * each for each in high], color=colour, alpha=0.15
        )
    axes.set(ylim=(-2, 102))
    axes.spines[["top", "right"]].set_visible(False)
