"""What each way to make a policy smaller or faster costs, and what is left of the policy: a table and a plot.

    python -m bench compress checkpoints/grounded checkpoints/clip

Every variant is an archive that can be served, in the folder of its policy. Its answers are held against
those of float32 TorchScript in scenes of the tabletop; then it drives episodes there. What is there already
of the same settings is not done again, but for the times: all variants of a policy take turns. With one
thread they are the processor's, so that what else runs on the machine counts little.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import tyro

from archive.read import unpack
from bench import results
from bench.compress import measuring, report
from bench.compress.measuring import Measured, Result
from bench.compress.scenes import observed, rows
from bench.compress.variants import VARIANTS, Maker, Variant
from bench.machine import fingerprint
from bench.results import say
from export.errors import ExportError
from export.find import find
from export.foreign.facts import Facts
from export.source import Source
from loadtest.document import Block
from vla_runtime.errors import SpecError
from vla_runtime.observation import Row
from vla_runtime.policy import Answer, Policy

# Scenes of their own: what pruned models are tuned on, and what answers are compared on.
TUNING_SEED, COMPARING_SEED = 2_000_000, 27_000_000
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Options:
    """What to compress, and where the report goes."""

    # Checkpoints of policies of the tabletop, as `python -m export` takes them.
    policies: tyro.conf.Positional[tuple[str, ...]]
    # Folder of the report, and of each policy's archives.
    out: Path = Path("runs/compress")
    # Variants to measure, by parts of their names; none named: all.
    only: tuple[str, ...] = ()
    # Make no archive that is not there already: the report is of those that are.
    made: bool = False
    # Closed-loop episodes of each variant, and actions of a chunk that are executed before the next.
    episodes: int = 40
    replan: int = 4
    # Observations on which answers are compared.
    compared: int = 240
    # Observations that pruned models are tuned on, and steps of 32 of them.
    tuned: int = 2400
    steps: int = 400
    # Share of the weights, or of the hidden units, that pruning takes.
    share: float = 0.5
    # Turns of the times.
    rounds: int = 9
    # Threads that compute; 0: one a core.
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("episodes", "replan", "compared", "tuned", "steps", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.policies:
            raise ValueError("policies must name at least one checkpoint")

    @property
    def variants(self) -> list[Variant]:
        """The variants to measure, the baseline always among them."""
        others = [v for v in VARIANTS[1:] if not self.only or any(part in v.name for part in self.only)]
        return [VARIANTS[0], *others]

    def settings(self, policy: str) -> dict[str, Any]:
        """Return what decides a result, as JSON gives it back."""
        free = ("policies", "out", "only", "made", "rounds", "threads")
        files = sorted(path for path in Path(policy).rglob("*") if path.is_file())
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        return {"source": digest} | {k: v for k, v in asdict(self).items() if k not in free}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every variant of every policy; returns 1 and a message where that is refused."""
    options = tyro.cli(Options, prog="python -m bench compress", description=__doc__, args=arguments)
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    try:
        found = {Path(policy).name: compress(policy, options) for policy in options.policies}
    except (ExportError, SpecError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    blocks: list[Block] = []
    for name, of in found.items():
        blocks += [f"## {name}", report.table(of)]
    report.plot(found, options.out / "compression.png")
    results.write("Compression", options.out / "compression", fingerprint("cpu"), found, blocks)
    return 0


def compress(policy: str, options: Options) -> list[Result]:
    """Make and measure one policy's variants; one that can't be made is left out, and said."""
    folder, source = options.out / Path(policy).name, find(policy, Facts(), "float32")
    settings = msgspec.json.format(msgspec.json.encode(options.settings(policy)))
    noted = folder / SETTINGS
    if not (noted.is_file() and noted.read_bytes() == settings):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        noted.write_bytes(settings)
    asked = rows(source, observed(source, options.compared, COMPARING_SEED, "test"))
    made = _made(source, folder, options)
    wanted = _answers(made[VARIANTS[0]], asked)
    measured = [_measured(v.name, path, asked, wanted, options) for v, path in made.items()]
    return _with_times(made, measured, asked, options.rounds)


def _made(source: Source, folder: Path, options: Options) -> dict[Variant, Path]:
    """Return the archives that there are or can be made."""
    made, maker = dict[Variant, Path](), None
    for variant in options.variants:
        path = folder / variant.file
        if not path.is_file() and options.made:
            continue
        if not path.is_file():
            maker = maker or _maker(source, options)
            say(f"{source.name}: {variant.name}")
            try:
                maker.archive(variant, path)
            except ExportError as error:
                say(f"left out: {error}")
                continue
        made[variant] = path
    return made


def _maker(source: Source, options: Options) -> Maker:
    scenes = observed(source, options.tuned, TUNING_SEED, "train")
    return Maker(source, scenes, options.share, options.steps)


def _measured(
    name: str, path: Path, asked: Sequence[Row], wanted: Sequence[Answer], options: Options
) -> Measured:
    """Measure all but the time, or return what was measured before."""
    kept = path.with_suffix(".json")
    if kept.is_file():
        return msgspec.json.decode(kept.read_bytes(), type=Measured)
    say(f"{path.parent.name}, {name}: answers, memory, success")
    found = Measured(
        variant=name,
        size_bytes=path.stat().st_size,
        peak_mib=measuring.peak_mib(path),
        success=measuring.success(path, options.episodes, options.replan),
        **measuring.compared(_answers(path, asked), wanted),
    )
    kept.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    return found


def _answers(path: Path, asked: Sequence[Row]) -> list[Answer]:
    with tempfile.TemporaryDirectory() as temporary:
        return measuring.answered(Policy.load(unpack(path, Path(temporary)), threads=1), asked)


def _with_times(
    made: dict[Variant, Path], measured: Sequence[Measured], asked: Sequence[Row], rounds: int
) -> list[Result]:
    """Take the times of all variants in turns, alone in this process."""
    say("times, in turns")
    with tempfile.TemporaryDirectory() as temporary:
        policies = {
            variant.name: Policy.load(unpack(path, Path(temporary, path.stem)), threads=1)
            for variant, path in made.items()
        }
        for policy in policies.values():
            policy.warm_up()
        times = measuring.timed(policies, asked, rounds)
        rates = measuring.rates(policies, asked, rounds)
    base = times[VARIANTS[0].name]
    return [
        Result(
            one,
            times[one.variant],
            {size: value / base[size] for size, value in times[one.variant].items()},
            rates[one.variant],
        )
        for one in measured
    ]
