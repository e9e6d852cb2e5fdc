"""What each format of one policy costs: size of the archive, start of a worker, time of a batch.

    python -m bench formats

Every format answers the same requests in this process, on the device that is here, in turns.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import tyro

from archive.read import unpack
from bench import results
from bench.machine import fingerprint
from bench.policies import of_architecture, of_size, robot_requests
from bench.results import say
from bench.timing import taken_s
from export.export import Options as Export
from export.export import archived
from loadtest.document import Table
from vla_runtime.policy import Policy

Kind = Literal["torchscript", "pt2", "eager", "eager compiled", "onnx"]
Policies = Literal["grounded", "command_attention", "ViT-B/32"]
BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Options:
    """What to compare, and where the report goes."""

    # Policies of random weights.
    policies: tuple[Policies, ...] = ("grounded", "command_attention", "ViT-B/32")
    formats: tuple[Kind, ...] = ("torchscript", "pt2", "eager", "eager compiled", "onnx")
    # Rounds of turns, each of at least 3 batches a format.
    rounds: int = 5
    # The report, without .md, .json and .html.
    output: Path = Path("runs/bench/formats")


@dataclass(frozen=True)
class Measured:
    """One format of one policy."""

    policy: str
    format: Kind
    size_mb: float
    # From the unpacked archive until every bucket was computed.
    ready_s: float
    # Batch size -> median time from prepared requests to actions [ms].
    batch_ms: dict[int, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every format of every policy and write the report."""
    options = tyro.cli(Options, prog="python -m bench formats", description=__doc__, args=arguments)
    found = [measured for name in options.policies for measured in of_policy(name, options)]
    head = ("policy", "format", "archive [MB]", "ready [s]", *(f"batch of {n} [ms]" for n in BATCHES))
    lines = [(m.policy, m.format, m.size_mb, m.ready_s, *m.batch_ms.values()) for m in found]
    results.write("Formats", options.output, fingerprint(), found, [Table(head, lines)])
    return 0


def of_policy(name: Policies, options: Options) -> Iterator[Measured]:
    """Yield what every format of one policy costs, when all are measured."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = of_size(name) if name == "ViT-B/32" else of_architecture(name)
    with tempfile.TemporaryDirectory() as temporary:
        policies: dict[Kind, Policy] = {}
        sizes: dict[Kind, float] = {}
        ready_s: dict[Kind, float] = {}
        for kind in options.formats:
            archive = Path(temporary, f"{kind.replace(' ', '_')}.mar")
            say(f"{name}: {kind}")
            format_ = "eager" if kind == "eager compiled" else kind
            compiled = kind == "eager compiled"
            place = device if format_ == "pt2" else "cpu"
            export = Export(
                "random weights", archive, buckets=BATCHES, format=format_, compile=compiled, device=place
            )
            archived(source, export)
            folder = unpack(archive, archive.with_suffix(""))
            began = time.perf_counter()
            policies[kind] = Policy.load(folder, device)
            policies[kind].warm_up()
            ready_s[kind] = time.perf_counter() - began
            sizes[kind] = archive.stat().st_size / 1e6
        times = _times_ms(policies, options.rounds)
    for kind in options.formats:
        yield Measured(name, kind, sizes[kind], ready_s[kind], {n: times[kind, n] for n in BATCHES})


def _times_ms(policies: dict[Kind, Policy], rounds: int) -> dict[tuple[Kind, int], float]:
    """Return the median time of a batch by format and size [ms]; formats take turns."""
    requests = robot_requests(BATCHES[-1])
    taken: dict[tuple[Kind, int], list[float]] = {(kind, size): [] for kind in policies for size in BATCHES}
    for _ in range(rounds):
        for kind, policy in policies.items():
            inputs = [policy.prepare(row) for row in requests]
            for size in BATCHES:
                taken[kind, size] += taken_s(partial(policy.compute, inputs[:size]), least=3)
    return {key: 1000 * median(values) for key, values in taken.items()}
