"""`python -m vla.evaluation.delays`: what answers that come late do to success and to smoothness."""

import datetime
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import msgspec
import tyro

from archive.digest import digest
from vla.evaluation.conditions import trials
from vla.evaluation.episodes import Setup
from vla.evaluation.late import Row, Way, measure
from vla.evaluation.policies import ArchivedPolicy
from vla.evaluation.report import table
from vla.provenance import commit
from vla.tabletop.collection import leave_to_demonstrations
from vla.tabletop.simulator import Tabletop
from vla_runtime.errors import SpecError


@dataclass(frozen=True)
class DelayEvaluation:
    """Run an archived policy in closed loop at several delays; write REPORT, its plot and its JSON."""

    # Archive (.mar) of the policy.
    archive: Path = Path("model_store/vla.mar")
    # Steps from an observation to the first action of its answer, one row of the table each [control steps].
    delays: tuple[int, ...] = (0, 1, 2, 4)
    # Steps from one observation to the next [control steps].
    replan: int = 4
    # Episodes a row, in held-out phrasings, spread evenly over the goals.
    episodes: int = 48
    # Seed of the first scene.
    first_seed: int = 7_000_000
    # The Markdown that is written.
    report: Path = Path("runs/delays.md")

    def __post_init__(self) -> None:
        if min(self.delays, default=-1) < 0 or max(self.delays) > self.replan:
            raise ValueError(f"delays must be from 0 to replan = {self.replan} steps, got {self.delays}")
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        leave_to_demonstrations(self.first_seed, self.episodes)


def ways(delay: int) -> tuple[Way, ...]:
    """Return the ways that differ at a delay: without one there is nothing to plan on from."""
    return get_args(Way) if delay else ("plain", "blended")


def markdown(rows: Sequence[Row]) -> str:
    """Return the table: success in percent with its 95 % Wilson interval, distances in millimetres."""
    head = ["delay [steps]", "way", "success [95 %]", "jump: mean / p95 [mm]", "disagreement [mm]"]
    return table([[*head, "within a chunk [mm]"], *map(_cells, rows)])


def _cells(row: Row) -> list[str]:
    (mean, p95), apart = row.jumps, row.disagreement
    return [
        str(row.delay),
        row.way,
        row.success.percent(),
        f"{mean:.1f} / {p95:.1f}",
        "-" if apart is None else f"{apart:.1f}",
        f"{row.within:.1f}",
    ]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Write success and jump against the delay as a PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  only in the dev extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for way in get_args(Way):
        mine = [row for row in rows if row.way == way]
        delays, rates = [row.delay for row in mine], [100 * row.success.value for row in mine]
        bounds = [row.success.interval for row in mine]
        below = [max(0.0, rate - 100 * low) for rate, (low, _) in zip(rates, bounds, strict=True)]
        above = [max(0.0, 100 * high - rate) for rate, (_, high) in zip(rates, bounds, strict=True)]
        left.errorbar(delays, rates, yerr=(below, above), marker="o", capsize=3, label=way)
        right.plot(delays, [row.jumps[0] for row in mine], marker="o")
    left.set(xlabel="delay [control steps]", ylabel="success [%], 95 % interval", ylim=(0, 105))
    right.set(xlabel="delay [control steps]", ylabel="jump between chunks [mm]")
    right.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    FigureCanvasAgg(figure).print_png(path)


def write(config: DelayEvaluation, rows: Sequence[Row]) -> str:
    """Write the report, its plot and its JSON; returns the Markdown."""
    about = (
        f"{config.episodes} episodes a row, the same scenes in each, from seed {config.first_seed} on; an "
        f"observation every {config.replan} steps. Archive SHA-256 {digest(config.archive)[:12]}, commit "
        f"{commit()}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, load {os.getloadavg()[0]:.1f}."
    )
    text = f"# Answers that come late\n\n{markdown(rows)}\n\n{about}\n"
    config.report.parent.mkdir(parents=True, exist_ok=True)
    config.report.write_text(text)
    found = {"configuration": asdict(config), "rows": [asdict(row) for row in rows]}
    encoded = msgspec.json.encode(found, enc_hook=str)
    config.report.with_suffix(".json").write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
    try:
        plot(rows, config.report.with_suffix(".png"))
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed; it comes with the dev extra", file=sys.stderr)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or 1 where the archive can't be run so."""
    try:
        config = tyro.cli(DelayEvaluation, prog="python -m vla.evaluation.delays", args=arguments)
        todo = trials("held_out", config.episodes, config.first_seed)
        with closing(Tabletop()) as env, ArchivedPolicy(config.archive) as policy:
            rows = [
                measure(env, policy, todo, Setup(config.replan), way=way, delay=delay)
                for delay in config.delays
                for way in ways(delay)
            ]
    except (SpecError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(write(config, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
