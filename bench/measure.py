"""One archive, measured alone and served: every figure of the report, in one run."""

import io
import itertools
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, median_low

import numpy as np
from PIL import Image

from bench import alone, bodies
from bench.alone import Process
from bench.bodies import Target
from bench.figures import Ceilings, Lone, Results, Round
from bench.generator import Plan
from bench.load import drive
from bench.results import say
from bench.served import WARM_UP_S, Load, Server, served, settle, write_empty_archive
from bench.timing import taken_s
from loadtest.body import Body
from vla_client.observation import encode

# Alternations of in-process and served that a lone request's overhead is the median of.
TURNS = 5
# A phase of many clients is long enough for so many batches of all of them, up to a limit [s].
BATCHES, MOST_S = 4, 16.0
BODIES: tuple[Body, ...] = ("multipart", "msgpack")


@dataclass(frozen=True)
class Kind:
    """What a camera sends."""

    name: str
    # [pixels]
    width: int
    height: int
    # Size of the JPEG file that its quality is chosen for [KB]; None: quality 90.
    kilobytes: float | None = None

    def pictures(self, most: int) -> list[bytes]:
        """Return different JPEG files, at most so many; fewer of the large ones."""
        count = min(most, max(64, 100_000_000 // (self.width * self.height)))
        return bodies.pictures(count, (self.width, self.height), self.kilobytes)


KINDS = (
    Kind("224x224", 224, 224),
    Kind("30KB", 640, 480, 30.0),
    Kind("640x480", 640, 480),
    Kind("1280x720", 1280, 720),
)


@dataclass(frozen=True)
class Depth:
    """How thoroughly to measure."""

    # Length of a phase of load, and of an in-process figure [s].
    phase_s: float
    figure_s: float
    # Closed-loop clients of the load curve.
    clients: tuple[int, ...]
    # Open-loop arrival rates, as shares of the saturated throughput.
    shares: tuple[float, ...]
    # Alternations of in-process and served throughput that the ratio is taken over.
    rounds: int
    kinds: tuple[Kind, ...]
    # Most different pictures of one kind.
    pictures: int


FULL = Depth(5.0, 1.0, (1, 2, 4, 8, 16, 32, 64), (0.25, 0.5, 0.75, 0.9), 3, KINDS, 512)
QUICK = Depth(1.0, 0.2, (1, 8), (0.5,), 1, KINDS[:1], 64)


def measure(archive: Path, depth: Depth) -> Results:
    """Measure one archive, and say every step."""
    with tempfile.TemporaryDirectory() as folder, Process(archive) as process:
        policy = process.call(alone.describe)
        state = (0.0,) * policy.state
        say(f"{policy.name}: in-process")
        pictures = {kind.name: kind.pictures(depth.pictures) for kind in depth.kinds}
        small = depth.kinds[0].name
        in_process = process.call(alone.everything, bodies.rows(pictures[small], state), depth.figure_s)
        with served(archive, state) as server:
            run = _Run(depth, server, process, Path(folder), pictures)
            say("served: warming up")
            server.load(run.pool(small, "multipart"), WARM_UP_S if depth is FULL else 1.0, clients=8)
            closed = {clients: run.closed(small, clients) for clients in depth.clients}
            # After the load: the front end's compiler has done its work by then.
            lone = [run.lone(kind.name, body) for kind in depth.kinds for body in BODIES]
            peak = max(closed, key=lambda clients: closed[clients].answers.rate_hz)
            saturated = {kind.name: run.closed(kind.name, peak) for kind in depth.kinds[1:]}
            bucket = max(in_process.policy_hz, key=lambda size: in_process.policy_hz[size])
            rounds = [run.round(turn, bucket, peak) for turn in range(1, depth.rounds + 1)]
            rate_hz = median(one.served.answers.rate_hz for one in rounds)
            opened = {share * rate_hz: run.open(small, share * rate_hz) for share in depth.shares}
            peak_mib = {"in-process": process.call(alone.own_peak_mib), **server.peak_mib()}
    return Results(policy, in_process, lone, closed, saturated, rounds, opened, peak_mib)


def ceilings(folder: Path, depth: Depth, batch: int = 32) -> Ceilings:
    """Measure what the load generator and TorchServe's front end can do at most."""
    pictures = depth.kinds[0].pictures(depth.pictures)
    commands = bodies.repeated(len(pictures))
    with _empty_endpoint() as port:
        pool = bodies.requests(Target("127.0.0.1", port, "/", ()), pictures, commands, "multipart")
        path = bodies.write(pool, folder / "empty.pool")
        generator = drive(Plan("127.0.0.1", port, str(path), depth.phase_s, clients=16))
    front_end = {}
    with served(write_empty_archive(folder / "empty.mar", batch)) as server:
        for body in BODIES:
            made = bodies.requests(server.target, pictures, commands, body)
            pool = bodies.write(made, folder / "front.pool")
            server.load(pool, WARM_UP_S if depth is FULL else 1.0, clients=32)
            front_end[body] = server.load(pool, depth.phase_s, clients=32)
    return Ceilings(generator, front_end)


@dataclass
class _Run:
    """The steps of one archive's measurement."""

    depth: Depth
    server: Server
    process: Process
    folder: Path
    # Kind -> pictures.
    pictures: dict[str, list[bytes]]
    # What the last closed loop reached [requests/s].
    rate_hz: float = math.inf

    def pool(self, kind: str, body: Body, turn: int = 0) -> Path:
        """Write requests with pictures of one kind, a different picture each.

        Their commands are repeated ones; with a `turn` above 0 they are such as no other turn has.
        """
        path = self.folder / f"{kind}.{body}.{turn}"
        if not path.exists():
            pictures = self.pictures[kind]
            # More commands than the worker keeps.
            commands = bodies.all_different(1100, turn) if turn else bodies.repeated(len(pictures))
            bodies.write(bodies.requests(self.server.target, pictures, commands, body), path)
        return path

    def lone(self, kind: str, body: Body) -> Lone:
        """Measure one client and the same pictures in-process, in turns."""
        seconds = self.depth.phase_s / TURNS
        pictures = self.pictures[kind]
        rows = bodies.rows(pictures, self.server.target.state)
        turns = []
        for _ in range(TURNS):
            in_process = self.process.call(alone.latency, rows, seconds)
            settle()
            turns.append((in_process, self.server.load(self.pool(kind, body), seconds, clients=1)))
            settle()
        # The turn in the middle by its overhead.
        overheads = [load.answers.latency.p50_ms - in_process.p50_ms for in_process, load in turns]
        in_process, load = turns[overheads.index(median_low(overheads))]
        split = self.process.call(alone.split, rows, min(1.0, seconds))
        size = sum(map(len, pictures)) / len(pictures) / 1000
        lone = Lone(kind, body, size, load, in_process, split, _encode_ms(pictures))
        say(f"  lone, {kind} {body}: p50 {load.answers.latency.p50_ms:.1f} ms, {lone.overhead_ms:+.1f} ms")
        return lone

    def closed(self, kind: str, clients: int) -> Load:
        """Measure `clients` in closed loop."""
        settle()
        load = self.server.load(self.pool(kind, "multipart"), self._seconds(clients), clients=clients)
        self.rate_hz = load.answers.rate_hz
        self._tell(f"{clients} clients, {kind}", load)
        return load

    def open(self, kind: str, rate_hz: float) -> Load:
        """Measure Poisson arrivals."""
        settle()
        load = self.server.load(self.pool(kind, "multipart"), self.depth.phase_s, rate_hz=rate_hz, seed=1)
        self._tell(f"arrivals at {rate_hz:.1f}/s, {kind}", load)
        return load

    def round(self, turn: int, bucket: int, clients: int) -> Round:
        """Measure saturated throughput in-process, served, and served with commands never seen before."""
        kind, seconds = self.depth.kinds[0].name, self._seconds(clients)
        rows = bodies.rows(self.pictures[kind], self.server.target.state)
        alone_hz = self.process.call(alone.rate, rows, bucket, seconds)
        settle()
        load = self.server.load(self.pool(kind, "multipart"), seconds, clients=clients)
        uncached = self.server.load(self.pool(kind, "multipart", turn), seconds, clients=clients)
        one = Round(alone_hz, load, uncached)
        say(f"  served / in-process {one.served_share:.2f}, cached / uncached {one.cached_gain:.2f}")
        return one

    def _seconds(self, clients: int) -> float:
        """Return how long a phase of so many clients is: a slow policy needs time for some batches."""
        return max(self.depth.phase_s, min(MOST_S, BATCHES * clients / self.rate_hz))

    def _tell(self, what: str, load: Load) -> None:
        answers = load.answers
        failed = f", {answers.failed} failed" if answers.failed else ""
        say(f"  {what}: {answers.rate_hz:.1f}/s, p95 {answers.latency.p95_ms:.0f} ms{failed}")


def _encode_ms(pictures: list[bytes]) -> float:
    """Return the median time that a client takes to encode such a picture [ms]."""
    pixels = [np.asarray(Image.open(io.BytesIO(picture))) for picture in pictures[:16]]
    turns = itertools.cycle(pixels)
    return 1000 * median(taken_s(lambda: encode(next(turns), "jpeg"), least=len(pixels)))


@contextmanager
def _empty_endpoint() -> Iterator[int]:
    command = [sys.executable, "-m", "bench.empty"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()
