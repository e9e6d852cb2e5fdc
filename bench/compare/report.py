"""The comparison of architectures as JSON, as a Markdown table and as a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.compare.probes import Probe
from vla.evaluation.report import Rate, table

# By how much an ablation must raise the validation error to say that the policy uses what it takes away.
CLEARLY = 1.25
SHOWN = {"m": ("mm", 1000.0)}
_COLOURS = {"held_out": "#2f6db3", "excluded": "#8fb8de", "shuffled": "#d98c3f", "blank": "#9a9a9a"}
_SPEEDS = ("#3f8f6b", "#a9d1bf")
_NAMES = {
    "held_out": "held-out phrasings",
    "excluded": "new combinations",
    "shuffled": "another command",
    "blank": "blank picture",
}


class Result(msgspec.Struct, frozen=True):
    """What came of one architecture."""

    architecture: str
    # Of the comparison.
    settings: dict[str, Any]
    # The command that trains it alike.
    command_line: str
    parameters: int
    steps: int
    train_s: float
    archive_bytes: int
    # Unit of each dimension of an action.
    units: tuple[str, ...]
    # Mean absolute error by probe: one number a dimension [action unit].
    errors: dict[Probe, tuple[float, ...]]
    # Closed loop: condition -> successes; `excluded`: held-out phrasings of the goals that training excluded.
    success: dict[str, Rate]
    # Batch size -> median time from encoded pictures to safe chunks [ms].
    latency_ms: dict[int, float]
    # Most memory that a process which runs it has had resident [MiB].
    peak_mib: float
    # Labels that it learns from and only the simulator knows, see `vla.models.Batch`.
    privileged: tuple[str, ...]

    def error(self, probe: Probe) -> dict[str, float]:
        """Return a probe's error by unit: the mean over the dimensions that have it."""
        by_unit: dict[str, list[float]] = {}
        for unit, value in zip(self.units, self.errors[probe], strict=True):
            shown, factor = SHOWN.get(unit, (unit, 1.0))
            by_unit.setdefault(shown, []).append(factor * value)
        return {unit: sum(values) / len(values) for unit, values in by_unit.items()}

    def uses(self, ablation: Probe) -> bool:
        """Whether the ablation clearly raises the error in the first unit: what it takes away counts."""
        plain, ablated = (next(iter(self.error(probe).values())) for probe in ("held_out", ablation))
        return ablated >= CLEARLY * plain


def write(folder: Path, results: Sequence[Result]) -> str:
    """Write comparison.json, comparison.md and comparison.png; returns the Markdown."""
    (folder / "comparison.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n"
    )
    text = markdown(results)
    (folder / "comparison.md").write_text(text)
    plot(results, folder / "comparison.png")
    return text


def markdown(results: Sequence[Result]) -> str:
    """Return three tables: what each architecture costs, does, and has learned."""
    how = results[0].settings
    excluded = " and ".join(how["excluded_goals"]) or "none"
    units = " / ".join(results[0].error("held_out"))
    parts = [
        f"{how['minutes']:g} minutes of training on one core each, batches of {how['batch']} frames with "
        f"{how['commands']} commands, preset {how['preset']}, seed {how['seed']}. Privileged labels are what "
        "an architecture learns from besides pictures, states, commands and actions: the simulator knows "
        "them, a robot does not record them.",
        table([_COST, *map(_cost, results)]),
        f"Success in percent of {results[0].success['held_out'].episodes} episodes a column, an observation "
        f"every {how['replan']} actions. New combinations, never commanded in training: {excluded}.",
        table([_SUCCESS, *map(_success, results)]),
        f"Mean absolute validation error [{units}], in held-out phrasings. An architecture uses words or "
        f"picture when taking them away raises its first error by {CLEARLY - 1:.0%} or more.",
        table([_ERROR, *map(_error, results)]),
    ]
    return "\n\n".join(parts) + "\n"


_COST = [
    "architecture",
    "parameters [M]",
    "archive [MB]",
    "memory [MiB]",
    "latency 1 / 8 [ms]",
    "steps",
    "privileged labels",
]
_SUCCESS = [
    "architecture",
    "held-out phrasings",
    "seen",
    "new combinations",
    "another command",
    "blank picture",
]
_ERROR = [*_SUCCESS[:2], "new combinations", "another command", "blank picture", "uses"]


def _cost(result: Result) -> list[str]:
    return [
        f"`{result.architecture}`",
        f"{result.parameters / 1e6:.2f}",
        f"{result.archive_bytes / 1e6:.1f}",
        f"{result.peak_mib:.0f}",
        " / ".join(f"{value:.1f}" for value in result.latency_ms.values()),
        str(result.steps),
        ", ".join(result.privileged) or "none",
    ]


def _success(result: Result) -> list[str]:
    rates = [result.success.get(name) for name in ("held_out", "seen", "excluded", "shuffled", "blank")]
    return [f"`{result.architecture}`", *(f"{100 * rate.value:.0f}" if rate else "-" for rate in rates)]


def _error(result: Result) -> list[str]:
    probes: tuple[Probe, ...] = ("held_out", "excluded", "shuffled", "blank")
    taken: dict[str, Probe] = {"words": "shuffled", "picture": "blank"}
    used = [name for name, probe in taken.items() if result.uses(probe)]
    return [
        f"`{result.architecture}`",
        *(
            " / ".join(f"{value:.2f}" for value in result.error(probe).values())
            if probe in result.errors
            else "-"
            for probe in probes
        ),
        " and ".join(used) or "neither",
    ]


def plot(results: Sequence[Result], path: Path) -> None:
    """Write a PNG: success by condition, and latency."""
    ordered = sorted(results, key=lambda result: result.success["held_out"].value)
    figure = Figure(figsize=(10, 1.5 + 0.42 * len(ordered)), layout="constrained")
    done, speed = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    height = 0.8 / len(_COLOURS)
    for turn, (condition, colour) in enumerate(_COLOURS.items()):
        found = [(at, r.success[condition]) for at, r in enumerate(ordered) if condition in r.success]
        at = [place + 0.4 - (turn + 0.5) * height for place, _ in found]
        done.barh(at, [100 * rate.value for _, rate in found], height, color=colour, label=_NAMES[condition])
    for turn, (size, colour) in enumerate(zip(ordered[0].latency_ms, _SPEEDS, strict=True)):
        at = [place + 0.2 - 0.4 * turn for place in range(len(ordered))]
        label = f"batch {size}"
        speed.barh(at, [result.latency_ms[size] for result in ordered], 0.4, color=colour, label=label)
    done.set_yticks(range(len(ordered)), [result.architecture for result in ordered])
    done.set_ylim(-0.6, len(ordered) - 0.4)
    done.set_xlim(0, 100)
    done.set_xlabel("success [%]")
    speed.set_xlabel("latency of the batch [ms]")
    for axes in (done, speed):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=6, frameon=False)
    FigureCanvasAgg(figure).print_png(path)
