"""The training curve as a picture."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from vla.training.progress import Point


def draw(path: Path, points: Sequence[Point], names: Sequence[str], units: Sequence[str]) -> None:
    """Draw loss and validation error over steps; prints why not where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        print(f"{path.name} is not drawn: matplotlib is not installed (it is in the extra 'dev')")
        return
    from matplotlib.figure import Figure  # noqa: PLC0415

    steps = [point.step for point in points]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, error = figure.subplots(1, 2)
    loss.plot(steps, [point.loss for point in points])
    loss.set(xlabel="step", ylabel="training loss", yscale="log")
    for index, (name, unit) in enumerate(zip(names, units, strict=True)):
        error.plot(steps, [point.error[index] for point in points], label=f"{name} [{unit}]")
    error.set(xlabel="step", ylabel="validation error", yscale="log")
    error.legend()
    figure.savefig(path, dpi=110)
