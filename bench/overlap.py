"""Whether a batch is prepared while another is computed: served over HTTP on a device that only sleeps.

    python -m bench overlap

A worker decodes, computes and answers one batch after another; a second worker does its own meanwhile. The
device takes a set time for a batch and no processor. It is shared as a GPU is: where two workers have a batch
each, it goes from one to the other every few milliseconds, unless they take turns.
"""

import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Annotated

import numpy as np
import psutil
import tyro
import yaml

from archive.write import pack
from bench import bodies, results, simulated
from bench.load import Answers
from bench.machine import fingerprint
from bench.results import say
from bench.served import served
from bench.simulated import Batch
from export.archive import CONFIG
from export.export import Options as Export
from export.export import archived
from export.source import Eager, Observation, Source
from loadtest.document import Table
from loadtest.host import Bystanders
from vla_runtime.spec import Camera, ContinuousSpace, Dimension, Statistics

NAMES = ("x", "y", "z", "gripper")
WARM_UP_S = 5.0
# Of the policy's picture [pixels]. Small: normalising it is a GPU's work, and here the processor's.
SIDE = 32
# What other programs may take in a measurement that counts [cores].
UNDISTURBED = 0.1


@dataclass(frozen=True)
class Options:
    """What the device takes, and how it is loaded."""

    # Time that the device takes for a batch, whatever its size [ms], one table row each.
    batch_ms: tuple[float, ...] = (20.0, 40.0, 80.0)
    # Further time for each of its observations [ms].
    row_ms: float = 0.0
    # After which it goes on with another worker's batch, where there is one [ms].
    slice_ms: float = 2.0
    # Workers to compare.
    workers: tuple[int, ...] = (1, 2)
    # Whether workers take turns, as they do on a GPU, or leave it to the device; only several workers differ.
    turns: tuple[bool, ...] = (False, True)
    # Largest batch [requests].
    batch: int = 8
    # Clients that each send their next request when they have their answer.
    clients: int = 32
    # Time of each measurement [s].
    duration_s: float = 6.0
    # Measurements of a case at most, until other programs hardly disturb one; the least disturbed counts.
    tries: int = 4
    # Size of the pictures sent [pixels].
    picture: tuple[int, int] = (320, 240)
    # Size of their files, about [KB].
    picture_kb: float = 30.0
    # The report, without .md, .json and .html.
    output: Path = Path("runs/bench/overlap")


@dataclass(frozen=True)
class Case:
    """What is compared."""

    batch_ms: float
    workers: int
    # Whether they take turns.
    turns: bool


@dataclass(frozen=True)
class Measured:
    """What became of the batches of one phase of load."""

    case: Case
    # What the device spent on a batch, mean [ms].
    compute_ms: float
    # Decoding a batch's pictures, median, as the answers say: under this very load [ms].
    prepare_ms: float
    # From the end of a batch until the same worker has its next one ready, median [ms]: the answer's way to
    # the clients, the next requests' way to the worker, and preparing.
    between_ms: float
    # Time in which the device had something to do.
    busy: float
    # Batches whose preparation must have begun before the batch before them had left the device.
    ahead: float
    # Processor time in use, the clients' included, and what of it other programs took [cores].
    cores: float
    others: float
    rate_hz: float
    mean_batch: float
    p95_ms: float
    failed: int

    @property
    def bound_hz(self) -> float:
        """What max(prepare, compute) allows with batches of the size that was computed [1/s]."""
        return 1000 * self.mean_batch / max(self.compute_ms, self.prepare_ms)

    @property
    def share(self) -> float:
        """How much of that was reached."""
        return self.rate_hz / self.bound_hz


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every combination and write the report."""
    options = tyro.cli(
        Annotated[Options, tyro.conf.OmitArgPrefixes],
        prog="python -m bench overlap",
        description=__doc__,
        args=arguments,
    )
    found = list[Measured]()
    for case in _cases(options):
        found.append(_measured(options, case))
        say(f"{100 * found[-1].share:.1f} % of max(prepare, compute): {found[-1]}")
    title = "Overlap on a simulated device"
    results.write(title, options.output, fingerprint(), found, [_table(found)])
    return 0


def _cases(options: Options) -> list[Case]:
    return [
        Case(batch_ms, workers, turns)
        for batch_ms in options.batch_ms
        for workers in options.workers
        for turns in (options.turns if workers > 1 else (True,))
    ]


def _table(found: Sequence[Measured]) -> Table:
    names = ("compute [ms]", "workers", "by turns", "of max(prepare, compute)", "device busy", "ready ahead")
    times = ("prepare [ms]", "between [ms]", "requests/s", "mean batch", "p95 [ms]", "failed")
    lines = [
        (
            m.compute_ms,
            str(m.case.workers),
            "-" if m.case.workers == 1 else "yes" if m.case.turns else "no",
            *(f"{100 * share:.0f} %" for share in (m.share, m.busy, m.ahead)),
            m.prepare_ms,
            m.between_ms,
            m.rate_hz,
            m.mean_batch,
            m.p95_ms,
            str(m.failed),
            m.cores,
            m.others,
        )
        for m in found
    ]
    return Table((*names, *times, "cores in use", "by others"), lines)


def _measured(options: Options, case: Case) -> Measured:
    """Serve one device, and load it until nobody disturbs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        device, archive = folder / "device", _exported(folder, options, case)
        tries = list[Measured]()
        with served(archive) as server:
            images = bodies.pictures(64, options.picture, options.picture_kb)
            pool = bodies.requests(server.target, images, [""] * 64, "msgpack")
            file = bodies.write(pool, folder / "pool")
            server.load(file, WARM_UP_S, clients=options.clients)
            while len(tries) < options.tries and not any(one.others < UNDISTURBED for one in tries):
                begin_s, bystanders = time.monotonic(), Bystanders()
                psutil.cpu_percent()
                load = server.load(file, options.duration_s, clients=options.clients).answers
                cores = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1), bystanders.cores()
                computed = [batch for batch in simulated.batches(device) if batch.begin_s > begin_s]
                tries.append(_found(case, computed, load, cores))
    return min(tries, key=lambda one: one.others)


def _found(case: Case, computed: Sequence[Batch], load: Answers, cores: tuple[float, float]) -> Measured:
    prepare_ms = load.stages_ms["preprocess"]
    gaps_ms = [1000 * (after.begin_s - before.end_s) for before, after in pairwise(computed)]
    return Measured(
        case=case,
        compute_ms=1000 * fmean(batch.busy_s for batch in computed),
        prepare_ms=prepare_ms,
        between_ms=_cycle_ms(computed) - load.stages_ms["inference"],
        busy=sum(batch.busy_s for batch in computed) / (computed[-1].end_s - computed[0].begin_s),
        ahead=fmean(gap_ms < prepare_ms for gap_ms in gaps_ms),
        cores=cores[0],
        others=cores[1],
        rate_hz=load.rate_hz,
        mean_batch=load.mean_batch,
        p95_ms=load.latency.p95_ms,
        failed=load.failed,
    )


def _cycle_ms(computed: Sequence[Batch]) -> float:
    """Return the median time from the end of a batch to the end of the same worker's next one [ms]."""
    by_worker = [[batch for batch in computed if batch.worker == one] for one in {b.worker for b in computed}]
    ends = (pairwise(batch.end_s for batch in batches) for batches in by_worker)
    return 1000 * median(after - before for pairs in ends for before, after in pairs)


def _exported(folder: Path, options: Options, case: Case) -> Path:
    """Export the device's archive. Its workers take turns, as they do on a GPU, or not."""
    archive = folder / "simulated.mar"
    buckets = tuple(2**n for n in range(options.batch.bit_length()))
    export = Export("simulated", archive, format="eager", workers=case.workers, buckets=buckets)
    archived(_source(folder / "device", case.batch_ms, options), export)
    with zipfile.ZipFile(archive) as packed:
        contents: dict[str, bytes | Path] = {name: packed.read(name) for name in packed.namelist()}
        config = yaml.safe_load(packed.read(CONFIG))
    config["handler"]["turns"] = case.turns
    pack(contents | {CONFIG: yaml.safe_dump(config).encode()}, archive)
    return archive


def _source(device: Path, batch_ms: float, options: Options) -> Source:
    arguments = {
        "device": str(device),
        "batch_ms": batch_ms,
        "row_ms": options.row_ms,
        "slice_ms": options.slice_ms,
        "width": len(NAMES),
    }
    return Source(
        model=simulated.build(**arguments).eval(),
        name="simulated",
        cameras=(Camera(name="front", width=SIDE, height=SIDE),),
        action=ContinuousSpace(
            dimensions=tuple(Dimension(name=name, unit="m", low=-1.0, high=1.0) for name in NAMES),
            normalisation="bounds",
            statistics=Statistics(low=(-1.0,) * 4, high=(1.0,) * 4),
            horizon=8,
            control_hz=10.0,
        ),
        example=Observation(images={"front": np.full((240, 320, 3), 120, np.uint8)}),
        eager=Eager(Path(simulated.__file__).parent, "simulated:build", arguments),
    )
