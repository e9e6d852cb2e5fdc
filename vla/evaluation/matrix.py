"""`python -m vla.evaluation.matrix`: what policies understand as one picture, of runs of `language`.

    python -m vla.evaluation.language --first-seed 17000000 --report runs/seed17.md
    python -m vla.evaluation.language --first-seed 18000000 --report runs/seed18.md
    python -m vla.evaluation.matrix runs/seed17.json runs/seed18.json

Runs of one name are added up: other scenes of one policy, or other seeds of its training. A row is a kind of
command or of picture, a column a policy. Below the picture goes the zero-shot table: success in what training
never shows, as a share of that in what it does.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from vla.evaluation.report import Rate, ratio, table
from vla.evaluation.understanding import Run, cells

SEEN, HELD_OUT = "seen phrasings", "held-out phrasings"
# What is new in it: the cells, and those that it is held against.
ZERO_SHOT = {
    "phrasings": ((HELD_OUT, "paraphrases", "landmark", "negation"), (SEEN,)),
    "words": (("synonyms of colours", "typing errors in the colour"), (SEEN,)),
    "light": (("light at half", "light at 1.3", "warm light", "cold light"), (HELD_OUT,)),
    "camera": (("camera moved 3 cm", "camera turned 3 degrees"), (HELD_OUT,)),
    "colours of things": (("other table colours", "other shades of the blocks"), (HELD_OUT,)),
    "distractors": (("three distractors",), (HELD_OUT,)),
    "spoilt pictures": (
        ("blur of radius 2", "noise of deviation 15", "a fifth of the edge covered"),
        (HELD_OUT,),
    ),
}


@dataclass(frozen=True)
class Matrix:
    """Draw runs of `python -m vla.evaluation.language`, and print their zero-shot ratios."""

    # The JSON files of the runs.
    runs: tyro.conf.Positional[tuple[Path, ...]]
    # The picture that is written.
    picture: Path = Path("runs/matrix.png")

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("runs must name at least one JSON file")


def pooled(runs: Sequence[Run]) -> dict[str, dict[str, list[Rate]]]:
    """Return each policy's cells, by name: a rate for every run that has the cell."""
    found: dict[str, dict[str, list[Rate]]] = {}
    for run in runs:
        for name, outcome in run.outcomes.items():
            rate = Rate(sum(outcome.good), len(outcome.good))
            found.setdefault(run.name, {}).setdefault(name, []).append(rate)
    return found


def total(rates: Sequence[Rate]) -> Rate:
    """Add rates up."""
    return Rate(sum(rate.successes for rate in rates), sum(rate.episodes for rate in rates))


def zero_shot(found: dict[str, dict[str, list[Rate]]]) -> str:
    """Return the ratios as a Markdown table; a kind of which no cell was run is left out."""
    rows = [("", *found)]
    for kind, (unseen, seen) in ZERO_SHOT.items():
        row = [_ratio(of, unseen, seen) for of in found.values()]
        if any(cell != "-" for cell in row):
            rows.append((kind, *row))
    return table(rows)


def _ratio(of: dict[str, list[Rate]], unseen: Sequence[str], seen: Sequence[str]) -> str:
    new, known = (total([r for name in names for r in of.get(name, [])]) for names in (unseen, seen))
    if not (new.episodes and known.episodes):
        return "-"
    value, low, high = ratio(new, known)
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def draw(found: dict[str, dict[str, list[Rate]]], path: Path) -> None:
    """Write the PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  only in the dev extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    shown = [cell for cell in cells() if any(cell.name in of for of in found.values())]
    figure = Figure(figsize=(3.7 + 1.9 * len(found), 1.2 + 0.27 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for row, cell in enumerate(shown):
        for column, of in enumerate(found.values()):
            if rates := of.get(cell.name):
                _cell(axes, row, column, rates)
    axes.set(xlim=(-0.5, len(found) - 0.5), ylim=(len(shown) - 0.5, -0.5))
    axes.set_xticks(range(len(found)), list(found))
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(shown)), [cell.name for cell in shown])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if (acting := sum(cell.acts for cell in shown)) and acting < len(shown):
        axes.axhline(acting - 0.5, color="#303030", linewidth=1.5)
    axes.set_xlabel("above the line: success, below it: held [%]\n[95 % interval]; (lowest to highest run)")
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def _cell(axes, row: int, column: int, rates: Sequence[Rate]) -> None:  # noqa: ANN001  of matplotlib
    """Fill one place: darker where more is missed."""
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    rate = total(rates)
    missed = (1 - rate.value) ** 0.5
    colour = (0.88 - 0.1 * missed, 0.93 - 0.6 * missed, 0.98 - 0.75 * missed)
    axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, color=colour))
    text = rate.percent()
    if len(rates) > 1:
        shares = [100 * each.value for each in rates]
        text += f" ({min(shares):.0f} to {max(shares):.0f})"
    axes.text(column, row, text, ha="center", va="center", fontsize=8)


def main() -> int:
    """Run the command line; returns 1 and a message where that is refused."""
    try:
        config = tyro.cli(Matrix, prog="python -m vla.evaluation.matrix", description=__doc__)
        found = pooled([Run.load(path) for path in config.runs])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    draw(found, config.picture)
    print(zero_shot(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
