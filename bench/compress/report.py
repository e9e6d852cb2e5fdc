"""The variants as a table and as a plot; a variant that another one beats in everything is marked."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.compress.measuring import BATCHES, Result
from loadtest.document import Table
from loadtest.figure import BLUE, GREEN, GRID, INK, ORANGE

# Times and sizes that differ by less count as equal.
ALIKE = 1.05
HEAD = (
    "variant",
    "archive [MB]",
    "memory [MiB]",
    *(f"batch of {size} [ms]" for size in BATCHES),
    "requests/s",
    "cosine",
    "error",
    "same holds [%]",
    "success [%]",
    "dominated by",
)
COLOURS = (BLUE, ORANGE, GREEN)


def dominating(one: Result, others: Sequence[Result]) -> str:
    """Return the first variant that is no worse in success, size and every time, and better in one; or ``."""
    for other in others:
        if other is not one and _no_worse(other, one) and not _no_worse(one, other):
            return other.measured.variant
    return ""


def _no_worse(one: Result, other: Result) -> bool:
    costs = zip(_costs(one), _costs(other), strict=True)
    succeeds = one.measured.success.value >= other.measured.success.value
    return succeeds and all(mine <= ALIKE * theirs for mine, theirs in costs)


def _costs(one: Result) -> list[float]:
    return [float(one.measured.size_bytes), *one.batch_ms.values()]


def table(results: Sequence[Result]) -> Table:
    """Return one policy's table; times also as multiples of the baseline's."""
    return Table(HEAD, [_row(one, dominating(one, results)) for one in results])


def _row(one: Result, dominated_by: str) -> list[str]:
    of = one.measured
    return [
        of.variant,
        f"{of.size_bytes / 1e6:.2f}",
        f"{of.peak_mib:.0f}",
        *(f"{one.batch_ms[size]:.1f} (x {one.ratio[size]:.2f})" for size in BATCHES),
        f"{one.rate_hz:.0f}",
        f"{of.cosine:.4f}",
        ", ".join(f"{value:.3f} {unit if unit != '1' else 'gripper'}" for unit, value in of.error.items()),
        f"{100 * of.same_holds.value:.0f}",
        of.success.percent(),
        dominated_by or "-",
    ]


def plot(results: dict[str, list[Result]], path: Path) -> None:
    """Write a PNG: a row a variant, a colour a policy; what it costs, how far it is off, what it achieves."""
    names = list(dict.fromkeys(one.measured.variant for of in results.values() for one in of))
    figure = Figure(figsize=(12.5, 1.4 + 0.42 * len(names)), layout="constrained")
    size, alone, full, error, success = panels = figure.subplots(1, 5, sharey=True)
    for place, (policy, of) in enumerate(results.items()):
        colour, shift = COLOURS[place % len(COLOURS)], 0.22 * (place - (len(results) - 1) / 2)
        at = [names.index(one.measured.variant) + shift for one in of]
        base = of[0].measured.size_bytes
        style = {"color": colour, "marker": "o", "linestyle": "none", "markersize": 4.5}
        size.plot([one.measured.size_bytes / base for one in of], at, label=policy, **style)
        alone.plot([one.ratio[BATCHES[0]] for one in of], at, **style)
        full.plot([one.ratio[BATCHES[-1]] for one in of], at, **style)
        error.plot([max(1e-3, next(iter(one.measured.error.values()))) for one in of], at, **style)
        for one, y in zip(of, at, strict=True):
            low, high = one.measured.success.interval
            success.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=1)
            success.plot(100 * one.measured.success.value, y, **style)
    _label(figure, panels, names)
    FigureCanvasAgg(figure).print_png(path)


def _label(figure: Figure, panels: Sequence, names: Sequence[str]) -> None:
    size, alone, full, error, success = panels
    size.set_yticks(range(len(names)), names)
    size.set_ylim(len(names) - 0.5, -0.5)
    size.set_xlabel("archive, of the baseline's")
    alone.set_xlabel(f"time of a batch of {BATCHES[0]},\nof the baseline's")
    full.set_xlabel(f"time of a batch of {BATCHES[-1]},\nof the baseline's")
    error.set(xlabel="mean error [mm]\n(0.001 stands for less)", xscale="log")
    success.set(xlabel="success [%],\n95 % interval", xlim=(0, 103))
    for axes in panels:
        axes.grid(axis="both", color=GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (size, alone, full):
        axes.axvline(1, color=INK, linewidth=0.8)
    size.set_xlim(left=0)
    for axes in (alone, full):
        shown = axes.get_xlim()
        axes.set_xscale("log", base=2)
        axes.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["1/4", "1/2", "1", "2", "4", "8"])
        axes.minorticks_off()
        axes.set_xlim(min(0.45, shown[0]), shown[1])
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
