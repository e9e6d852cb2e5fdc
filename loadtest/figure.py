"""How every plot looks, as SVG that stands inside a page."""

import io
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot  # the back end is chosen first

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
Given = ParamSpec("Given")
Draw = Callable[Concatenate[Any, Given], None]


def figure(size: tuple[float, float] = WIDE) -> Callable[[Draw[Given]], Callable[Given, str]]:
    """Make a function that draws into axes one that returns an SVG element of this size [inches]."""

    def decorate(draw: Draw[Given]) -> Callable[Given, str]:
        def drawn(*arguments: Given.args, **options: Given.kwargs) -> str:
            with pyplot.rc_context(STYLE):
                whole, axes = pyplot.subplots(figsize=size)
                draw(axes, *arguments, **options)
                return _svg(whole)

        return drawn

    return decorate


def legend(axes: Any) -> None:
    """Put the legend above the plot, in one line."""
    axes.legend(ncols=5, loc="upper left", bbox_to_anchor=(0, 1.16))


def _svg(whole: Any) -> str:
    """Return the figure as an SVG element, without the XML declaration that a page must not repeat."""
    buffer = io.StringIO()
    whole.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(whole)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
