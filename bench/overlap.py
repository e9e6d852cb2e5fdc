"""Whether a batch is prepared while another is computed: served over HTTP on a device that only sleeps.

    python -m bench overlap

A worker decodes, computes and answers one batch after another; a second worker does its own meanwhile. The
device takes a set time for a batch and no processor, one batch at a time for all workers, as one GPU does.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import tyro

from archive.read import unpack
from bench import bodies, results, simulated
from bench.answers import answers
from bench.machine import fingerprint
from bench.results import say
from bench.served import served
from export.export import Options as Export
from export.export import archived
from export.source import Eager, Observation, Source
from loadtest.document import Table
from vla_runtime.policy import Policy
from vla_runtime.spec import Camera, ContinuousSpace, Dimension, Statistics

NAMES = ("x", "y", "z", "gripper")
WARM_UP_S = 5.0


@dataclass(frozen=True)
class Options:
    """What the device takes, and how it is loaded."""

    # Time that the device takes for a batch, whatever its size [ms], one table row each.
    batch_ms: tuple[float, ...] = (20.0, 40.0, 80.0)
    # Further time for each of its observations [ms].
    row_ms: float = 0.0
    # Workers to compare.
    workers: tuple[int, ...] = (1, 2)
    # Largest batch [requests].
    batch: int = 8
    # Clients that each send their next request when they have their answer.
    clients: int = 32
    # Time of each measurement [s].
    duration_s: float = 8.0
    # Size of the pictures sent [pixels].
    picture: tuple[int, int] = (320, 240)
    # The report, without .md, .json and .html.
    output: Path = Path("runs/bench/overlap")


@dataclass(frozen=True)
class Measured:
    """One device time with one number of workers."""

    batch_ms: float
    workers: int
    # Preparing one full batch while nothing else runs [ms].
    prepare_ms: float
    rate_hz: float
    mean_batch: float
    p95_ms: float
    failed: int

    @property
    def bound_hz(self) -> float:
        """What max(prepare, compute) allows with batches of the size that was computed [1/s]."""
        return 1000 * self.mean_batch / max(self.batch_ms, self.prepare_ms)

    @property
    def share(self) -> str:
        """How much of that was reached."""
        return f"{100 * self.rate_hz / self.bound_hz:.0f} %"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every combination and write the report."""
    options = tyro.cli(
        Annotated[Options, tyro.conf.OmitArgPrefixes],
        prog="python -m bench overlap",
        description=__doc__,
        args=arguments,
    )
    found = []
    for batch_ms in options.batch_ms:
        for workers in options.workers:
            found.append(_measured(options, batch_ms, workers))
            say(str(found[-1]))
    title = "Overlap on a simulated device"
    results.write(title, options.output, fingerprint(), found, [_table(found)])
    return 0


def _table(found: Sequence[Measured]) -> Table:
    device = ("device [ms a batch]", "prepare [ms a batch]", "workers")
    served = ("requests/s", "mean batch", "of max(prepare, compute)", "p95 [ms]", "failed")
    lines = [
        (
            f"{m.batch_ms:g}",
            m.prepare_ms,
            str(m.workers),
            m.rate_hz,
            m.mean_batch,
            m.share,
            m.p95_ms,
            str(m.failed),
        )
        for m in found
    ]
    return Table((*device, *served), lines)


def _measured(options: Options, batch_ms: float, workers: int) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = folder / "simulated.mar"
        buckets = tuple(2**n for n in range(options.batch.bit_length()))
        export = Export("simulated", archive, format="eager", workers=workers, buckets=buckets)
        archived(_source(folder / "device", batch_ms, options.row_ms), export)
        prepare_ms = _prepare_ms(archive, folder, options)
        with served(archive) as server:
            images = bodies.pictures(64, options.picture)
            pool = bodies.requests(server.target, images, [""] * 64, "msgpack")
            file = bodies.write(pool, folder / "pool")
            server.load(file, WARM_UP_S, clients=options.clients)
            load = server.load(file, options.duration_s, clients=options.clients).answers
    return Measured(
        batch_ms=batch_ms + options.row_ms * load.mean_batch,
        workers=workers,
        prepare_ms=prepare_ms,
        rate_hz=load.rate_hz,
        mean_batch=load.mean_batch,
        p95_ms=load.latency.p95_ms,
        failed=load.failed,
    )


def _prepare_ms(archive: Path, folder: Path, options: Options) -> float:
    """Return the median time of preparing a full batch in a quiet process [ms]."""
    policy = Policy.load(unpack(archive, folder / "unpacked"), threads=2)
    requests = [{"image": picture} for picture in bodies.pictures(options.batch, options.picture)]
    taken_ms = [answers(policy, requests)[0].timing_ms["preprocess"] for _ in range(12)]
    return float(median(taken_ms[2:]))


def _source(lock: Path, batch_ms: float, row_ms: float) -> Source:
    arguments = {"lock": str(lock), "batch_ms": batch_ms, "row_ms": row_ms, "width": len(NAMES)}
    return Source(
        model=simulated.build(**arguments).eval(),
        name="simulated",
        cameras=(Camera(name="front", width=224, height=224),),
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
