"""`python -m vla.evaluation.calibration`: whether a policy's confidence means what it says.

Of commands and pictures of every kind of `vla.evaluation.understanding` the first answer's confidence is held
against whether there was something to do. Reliability diagram and expected calibration error as in Guo et al.
2017, "On Calibration of Modern Neural Networks"; and for each threshold the two mistakes: valid commands that
are held, and impossible ones that are acted on.
"""

import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from archive.digest import digest
from archive.read import read_policy
from vla.evaluation.episodes import Setup, observe
from vla.evaluation.language import dress
from vla.evaluation.policies import ArchivedPolicy
from vla.evaluation.report import Rate, table
from vla.evaluation.understanding import Cell, cells
from vla.provenance import commit
from vla.tabletop.collection import leave_to_demonstrations
from vla.tabletop.simulator import Tabletop
from vla_client import Policy
from vla_runtime.errors import RequestError, SpecError

BINS = 10
THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.9)
INK, GREY, BLUE, RED = "#303030", "#9a9a9a", "#2f6db3", "#c03a2b"


@dataclass(frozen=True)
class Calibration:
    """Ask once in many scenes; write REPORT, a plot beside it, and all answers as JSON."""

    # Archive (.mar) of a policy that answers with a confidence.
    archive: Path = Path("model_store/vla.mar")
    # Scenes of each kind of command or picture.
    scenes: int = 40
    # Seed of the first scene; kind i takes the seeds from `first_seed + 1000 * i` on.
    first_seed: int = 8_000_000
    # The Markdown that is written.
    report: Path = Path("runs/calibration.md")

    def __post_init__(self) -> None:
        if not 1 <= self.scenes <= 1000:
            raise ValueError(f"scenes must be from 1 to 1000, got {self.scenes}")
        leave_to_demonstrations(self.first_seed, 1000 * len(cells()))


@dataclass(frozen=True)
class Asked:
    """One answer."""

    kind: str
    command: str
    # Whether there is something to do.
    possible: bool
    confidence: float


@dataclass(frozen=True)
class Bin:
    """Answers of about one confidence."""

    confidence: float
    possible: Rate


def ask(env: Tabletop, policy: Policy, cell: Cell, index: int, first_seed: int) -> Asked:
    """Ask in one scene.

    Raises:
        SpecError: the policy answers without a confidence.
    """
    trial = cell.trial(index, first_seed + index)
    dress(env, cell, trial)
    chunk = policy.infer(observe(env, trial, cell.setup(Setup())))
    if chunk.confidence is None:
        raise SpecError(f"{chunk.policy} answers without a confidence")
    return Asked(cell.name, trial.command, cell.acts, chunk.confidence)


def binned(asked: Sequence[Asked]) -> list[Bin]:
    """Return the bins that have answers, equally wide in confidence."""
    places = np.minimum([int(one.confidence * BINS) for one in asked], BINS - 1)
    found = []
    for place in range(BINS):
        ours = [one for one, at in zip(asked, places, strict=True) if at == place]
        if ours:
            mean = float(np.mean([one.confidence for one in ours]))
            found.append(Bin(mean, Rate(sum(one.possible for one in ours), len(ours))))
    return found


def balanced(asked: Sequence[Asked], each: int) -> list[Asked]:
    """Return as many answers where there is something to do as where there is none, `each` at most."""
    random = np.random.default_rng(0)
    kinds = [[one for one in asked if one.possible == possible] for possible in (True, False)]
    count = min(each, *map(len, kinds))
    return [kind[place] for kind in kinds for place in random.permutation(len(kind))[:count]]


def expected_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error, in [0, 1]."""
    total = sum(one.possible.episodes for one in bins)
    return sum(abs(one.confidence - one.possible.value) * one.possible.episodes for one in bins) / total


def mistakes(asked: Sequence[Asked], threshold: float) -> tuple[Rate, Rate]:
    """Return how many valid commands are held below a threshold, and how many impossible ones are not."""
    valid = [one.confidence < threshold for one in asked if one.possible]
    other = [one.confidence >= threshold for one in asked if not one.possible]
    return Rate(sum(valid), len(valid)), Rate(sum(other), len(other))


def markdown(config: Calibration, asked: Sequence[Asked], shipped: float | None) -> str:
    """Return the report: shares in percent, 95 % Wilson intervals in brackets."""
    even = balanced(asked, len(asked))
    bins = binned(even)
    thresholds = sorted(THRESHOLDS if shipped is None else {*THRESHOLDS, shipped})
    rows = [
        (
            f"**{at:g}** (shipped)" if at == shipped else f"{at:g}",
            *(rate.percent(1) for rate in mistakes(asked, at)),
        )
        for at in thresholds
    ]
    steps = [(f"{one.confidence:.3f}", one.possible.percent(1), str(one.possible.episodes)) for one in bins]
    return "\n".join(
        [
            f"By `python -m vla.evaluation.calibration`, {datetime.date.today()}, commit {commit()[:10]}, "
            f"archive `{digest(config.archive)[:16]}`, {os.cpu_count()} cores of {platform.machine()}, in "
            f"process. {config.scenes} scenes of each of {len({one.kind for one in asked})} kinds of "
            f"commands and pictures, seeds from {config.first_seed} on. "
            "Percent, 95 % Wilson interval in brackets.",
            "",
            f"Expected calibration error, of as many commands that can be done as that can't "
            f"({len(even)}): **{100 * expected_error(bins):.1f} %**.",
            "",
            table([("confidence", "there was something to do", "answers"), *steps]),
            "",
            table([("threshold", "valid commands held", "impossible ones acted on"), *rows]),
            "",
        ]
    )


def plot(asked: Sequence[Asked], shipped: float | None, path: Path) -> None:
    """Write a PNG: the reliability diagram, and both mistakes by threshold.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  only in the dev extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    bins = binned(balanced(asked, len(asked)))
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    reliable, wrong = figure.subplots(1, 2)
    reliable.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    means = np.array([one.confidence for one in bins])
    shares = np.array([one.possible.value for one in bins])
    low, high = np.array([one.possible.interval for one in bins]).T
    around = np.maximum([shares - low, high - shares], 0)
    reliable.errorbar(means, shares, around, color=BLUE, marker="o", capsize=3, linestyle="none")
    reliable.set(
        xlabel="confidence", ylabel="there was something to do", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03)
    )
    at = np.linspace(0, 1, 201)
    held, acted = np.array([[100 * rate.value for rate in mistakes(asked, value)] for value in at]).T
    wrong.plot(at, held, color=BLUE, label="valid commands held")
    wrong.plot(at, acted, color=RED, label="impossible ones acted on")
    if shipped is not None:
        wrong.axvline(shipped, color=INK, linestyle=":", label="shipped threshold")
    wrong.set(xlabel="threshold", ylabel="[%]")
    wrong.legend(frameon=False)
    for axes in (reliable, wrong):
        axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure).print_png(path)


def main() -> int:
    """Run the command line; returns 1 and a message where that is refused."""
    try:
        config = tyro.cli(Calibration, prog="python -m vla.evaluation.calibration", description=__doc__)
        shipped = read_policy(config.archive)["safety"]["min_confidence"]
        with closing(Tabletop()) as env, ArchivedPolicy(config.archive) as policy:
            asked = [
                ask(env, policy, cell, index, config.first_seed + 1000 * place)
                for place, cell in enumerate(tqdm(cells(), unit="kind", disable=None))
                for index in range(config.scenes)
            ]
    except (RequestError, SpecError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    config.report.parent.mkdir(parents=True, exist_ok=True)
    picture = config.report.with_suffix(".png")
    plot(asked, shipped, picture)
    text = markdown(config, asked, shipped)
    config.report.write_text(f"{text}\n![Reliability, and mistakes by threshold]({picture.name})\n")
    config.report.with_suffix(".json").write_text(json.dumps([asdict(one) for one in asked], indent=1))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
