"""The comparison of architectures as JSON, as a Markdown table and as a plot."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import msgspec
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.compare.probes import Probe
from vla.evaluation.report import Rate, ratio, table

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
    """What came of one architecture with one seed."""

    architecture: str
    seed: int
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


class Compared(NamedTuple):
    """One architecture with all its seeds."""

    results: tuple[Result, ...]

    @property
    def name(self) -> str:
        """The architecture, marked where it learns from privileged labels."""
        first = self.results[0]
        return first.architecture + (" *" if first.privileged else "")

    def success(self, condition: str) -> Rate | None:
        """Return the successes of all seeds together; None of none."""
        found = [each.success[condition] for each in self.results if condition in each.success]
        return Rate(sum(r.successes for r in found), sum(r.episodes for r in found)) if found else None

    def error(self, probe: Probe) -> dict[str, float]:
        """Return a probe's error by unit, the mean of the seeds."""
        found = [each.error(probe) for each in self.results]
        return {unit: mean(of[unit] for of in found) for unit in found[0]}

    def latency_ms(self, size: int) -> float:
        """Return the mean over the seeds of a batch's time [ms]."""
        return mean(each.latency_ms[size] for each in self.results)


def compared(results: Sequence[Result]) -> list[Compared]:
    """Return the architectures in the order of their first results."""
    names = dict.fromkeys(result.architecture for result in results)
    return [Compared(tuple(each for each in results if each.architecture == name)) for name in names]


def write(folder: Path, results: Sequence[Result]) -> str:
    """Write comparison.json, comparison.md and comparison.png; returns the Markdown."""
    (folder / "comparison.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n"
    )
    text = markdown(results)
    (folder / "comparison.md").write_text(text)
    plot(compared(results), folder / "comparison.png")
    return text


def markdown(results: Sequence[Result]) -> str:
    """Return three tables: what each architecture costs, does, and has learned."""
    how, rows = results[0].settings, compared(results)
    excluded = " and ".join(how["excluded_goals"]) or "none"
    units = " / ".join(results[0].error("held_out"))
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(result.seed for result in results))
    parts = [
        f"{how['minutes']:g} minutes of training on one core each, batches of {how['batch']} frames with "
        f"{how['commands']} commands, preset {how['preset']}, seeds {seeds}. Architectures with a * learn "
        "from privileged labels, besides pictures, states, commands and actions: the simulator knows them, a "
        "robot does not record them. From lowest to highest of the seeds where they differ.",
        table([_COST, *map(_cost, rows)]),
        f"Success in percent of {results[0].success['held_out'].episodes} episodes a seed and column, an "
        f"observation every {how['replan']} actions; of all seeds together, with the 95 % Wilson interval, "
        f"and the lowest and highest seed. New combinations, never commanded in training: {excluded}; as a "
        "share of held-out phrasings with a 95 % interval.",
        table([_SUCCESS, *map(_success, rows)]),
        f"Mean absolute validation error [{units}], in held-out phrasings. An architecture uses words or "
        f"picture when taking them away raises its first error by {CLEARLY - 1:.0%} or more with every seed.",
        table([_ERROR, *map(_error, rows)]),
    ]
    return "\n\n".join(parts) + "\n"


_COST = [
    "architecture",
    "parameters [M]",
    "archive [MB]",
    "memory [MiB]",
    "latency 1 / 8 [ms]",
    "trained [s]",
    "steps",
    "privileged labels",
]
_SUCCESS = [
    "architecture",
    "held-out phrasings",
    "seen",
    "new combinations",
    "new / held-out",
    "another command",
    "blank picture",
]
_ERROR = [*_SUCCESS[:2], "new combinations", "another command", "blank picture", "uses"]


def _cost(row: Compared) -> list[str]:
    first, results = row.results[0], row.results
    return [
        f"`{row.name}`",
        f"{first.parameters / 1e6:.2f}",
        f"{first.archive_bytes / 1e6:.1f}",
        f"{max(each.peak_mib for each in results):.0f}",
        " / ".join(f"{row.latency_ms(size):.1f}" for size in first.latency_ms),
        _span(f"{each.train_s:.0f}" for each in results),
        _span(str(each.steps) for each in results),
        ", ".join(first.privileged) or "none",
    ]


def _span(values: Iterable[str]) -> str:
    """Say the least and the most of some numbers."""
    ordered = sorted(values, key=float)
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def _success(row: Compared) -> list[str]:
    held_out, excluded = row.success("held_out"), row.success("excluded")
    share = "-"
    if held_out and excluded:
        value, low, high = ratio(excluded, held_out)
        share = f"{value:.2f} [{low:.2f}, {high:.2f}]"
    names = ("held_out", "seen", "excluded", "shuffled", "blank")
    cells = [_rate(row, name) for name in names]
    return [f"`{row.name}`", *cells[:3], share, *cells[3:]]


def _rate(row: Compared, condition: str) -> str:
    rate = row.success(condition)
    if rate is None:
        return "-"
    of = [each.success[condition].value for each in row.results if condition in each.success]
    return rate.percent() + (f" ({_span(f'{100 * each:.0f}' for each in of)})" if len(of) > 1 else "")


def _error(row: Compared) -> list[str]:
    probes: tuple[Probe, ...] = ("held_out", "excluded", "shuffled", "blank")
    taken: dict[str, Probe] = {"words": "shuffled", "picture": "blank"}
    used = [name for name, probe in taken.items() if all(each.uses(probe) for each in row.results)]
    return [
        f"`{row.name}`",
        *(
            " / ".join(f"{value:.2f}" for value in row.error(probe).values())
            if all(probe in each.errors for each in row.results)
            else "-"
            for probe in probes
        ),
        " and ".join(used) or "neither",
    ]


def plot(rows: Sequence[Compared], path: Path) -> None:
    """Write a PNG: success by condition with its interval, and latency; a * marks privileged labels."""
    ordered = sorted(rows, key=lambda row: rate.value if (rate := row.success("held_out")) else 0.0)
    figure = Figure(figsize=(10, 1.5 + 0.42 * len(ordered)), layout="constrained")
    done, speed = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    height = 0.8 / len(_COLOURS)
    for turn, (condition, colour) in enumerate(_COLOURS.items()):
        found = [(at, rate) for at, row in enumerate(ordered) if (rate := row.success(condition))]
        at = [place + 0.4 - (turn + 0.5) * height for place, _ in found]
        around = [[100 * abs(rate.value - rate.interval[side]) for _, rate in found] for side in (0, 1)]
        shown = [100 * rate.value for _, rate in found]
        done.barh(at, shown, height, xerr=around, color=colour, ecolor="#606060", label=_NAMES[condition])
    for turn, (size, colour) in enumerate(zip(ordered[0].results[0].latency_ms, _SPEEDS, strict=True)):
        at = [place + 0.2 - 0.4 * turn for place in range(len(ordered))]
        label = f"batch {size}"
        speed.barh(at, [row.latency_ms(size) for row in ordered], 0.4, color=colour, label=label)
    done.set_yticks(range(len(ordered)), [row.name for row in ordered])
    done.set_ylim(-0.6, len(ordered) - 0.4)
    done.set_xlim(0, 100)
    done.set_xlabel("success [%], 95 % interval; * learns from privileged labels")
    speed.set_xlabel("latency of the batch [ms]")
    for axes in (done, speed):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=6, frameon=False)
    FigureCanvasAgg(figure).print_png(path)
