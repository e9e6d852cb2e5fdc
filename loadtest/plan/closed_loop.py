"""Measures a server's curve: closed loops of Locust's clients, and what the gate counted meanwhile."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import msgspec
import requests

from archive.read import Archive
from loadtest import answers, host, known, tiers
from loadtest.access import NOTHING, Access
from loadtest.judge import percentile
from loadtest.plan.curve import Curve, CurveError, Loop, costs_ms, smoothed, spread
from loadtest.run import Result, Subject, Target, run
from loadtest.samples import OK
from loadtest.watch import Metrics, parse, total
from server.gate.gate import served

# Clients of the loops, one after the other.
CLIENTS = (1, 2, 4, 8, 16, 32)
BATCHES = "vla_gate_batch_seconds"
WAITS = "vla_gate_wait_seconds"
# Answers of one loop and batch size from which their spread is taken.
LEAST = 20
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Served:
    """A server that is to be measured."""

    subject: Subject
    workers: int
    waiting: int
    largest: int
    start_s: float | None


@contextmanager
def serving(archive: Path) -> Iterator[Served]:
    """Serve an archive on this host while it is measured."""
    began_s = time.monotonic()
    with served(archive) as (server, port):
        start_s, name = time.monotonic() - began_s, server.archive.name
        target = Target(
            f"http://127.0.0.1:{port}", server.management_url, f"http://127.0.0.1:{port + 2}/metrics", name
        )
        yield described(target, Archive.open(archive).largest_batch, start_s)


def described(target: Target, largest: int, start_s: float | None = None) -> Served:
    """Ask a running server what it is.

    Raises:
        ContractError, NotAsked: it does not say, or lets nobody in.
        CurveError: its management API does not say how many workers it has.
    """
    description = answers.fetch(target.management_url, target.model)
    try:
        (model,) = requests.get(f"{target.management_url}/models/{target.model}", timeout=TIMEOUT_S).json()
        queue = model["jobQueueStatus"]
        waiting, workers = queue["remainingCapacity"] + queue["pendingRequests"], len(model["workers"])
    except (requests.RequestException, ValueError, KeyError) as error:
        raise CurveError(f"{target.management_url} does not say how {target.model} is served") from error
    asked = known.ask(target.predictions_url, target.access, description, 0)
    return Served(Subject(target, description, asked), max(1, workers), waiting, largest, start_s)


def target_of(url: str, model: str, access: Access = NOTHING) -> Target:
    """Return the addresses of a server by its inference API's, whose ports follow each other."""
    beside, _, port = url.rstrip("/").rpartition(":")
    if not port.isdigit():
        raise CurveError(f"the URL must end with a port, got {url!r}")
    inference = int(port)
    return Target(
        url.rstrip("/"), f"{beside}:{inference + 1}", f"{beside}:{inference + 2}/metrics", model, access
    )


def measure(
    server: Served, *, clients: Sequence[int] = CLIENTS, seconds: float = 4.0, say: Callable[[str], None]
) -> list[Loop]:
    """Run one closed loop for each number of clients.

    Args:
        server: what is measured
        clients: numbers of clients
        seconds: how long each loop is measured [s]
        say: gets a line a loop

    Raises:
        RunFailed: the load generator could not run.
        CurveError: the server's metrics can't be read, or a loop got no right answer.
    """
    loops = []
    for turn, count in enumerate(clients):
        before = _metrics(server.subject.target)
        result = run(server.subject, _tier(count, seconds), seed=turn, say=lambda _line: None)
        loop = _loop(count, seconds, result, before, _metrics(server.subject.target))
        company = f", other programs took {loop.bystanders:.1f} cores" if loop.bystanders else ""
        say(f"  {count} clients: {loop.rate_hz:.0f}/s, p95 {loop.p95_ms:.1f} ms{company}")
        loops.append(loop)
    return loops


def curve_of(server: Served, loops: list[Loop]) -> Curve:
    """Return the curve that loops of one server make."""
    fixed_ms, answer_ms = costs_ms(loops)
    description = server.subject.description
    return Curve(
        policy=f"{description['name']} {description['version']}",
        host=host.describe(),
        measured=time.strftime("%Y-%m-%d"),
        workers=server.workers,
        largest=server.largest,
        waiting=server.waiting,
        batch_ms=smoothed(loops),
        spread=spread(loops),
        request_ms=fixed_ms,
        answer_ms=answer_ms,
        start_s=server.start_s,
        loops=loops,
    )


def _tier(clients: int, seconds: float) -> tiers.Tier:
    """Return a closed loop as a tier that promises next to nothing, so that no deadline ends a request."""
    return tiers.Tier(
        use="closed loop",
        robots=clients,
        control_hz=10,
        ramp_s=0.2,
        warm_up_s=1.0,
        duration_s=seconds,
        latency_ms={"p95": 60_000},
        max_failures=1,
        deadline_ms=30_000,
        max_deadline_misses=1,
        memory_gib=10_000,
        scenario="eager",
    )


def _loop(clients: int, seconds: float, result: Result, before: Metrics, after: Metrics) -> Loop:
    """Summarise one loop: the clients' latency of its measured part, the gate's counts of all of it."""
    right = [s for s in result.recording.samples if s.outcome == OK]
    measured = [s.latency_ms for s in right if s.due_s >= result.begin_s]
    if not measured:
        errors = ", ".join(result.judgement.errors) or "none came"
        raise CurveError(f"{clients} clients got no right answer: {errors}")

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    sizes = {dict(labels)["size"] for name, labels in after if name == f"{BATCHES}_count"}
    counts = {int(size): round(grown(f"{BATCHES}_count", size=size)) for size in sizes}
    by_batch: dict[int, list[float]] = defaultdict(list)
    for sample in right:
        by_batch[sample.batch].append(sample.latency_ms)
    groups = [values for values in by_batch.values() if len(values) >= LEAST]
    return Loop(
        clients=clients,
        requests=len(right),
        rate_hz=len(measured) / seconds,
        p50_ms=percentile(measured, 50),
        p95_ms=percentile(measured, 95),
        mean_ms=fmean(s.latency_ms for s in right),
        wait_ms=1000 * grown(f"{WAITS}_sum") / max(1.0, grown(f"{WAITS}_count")),
        batches={size: count for size, count in sorted(counts.items()) if count},
        batches_s={s: grown(f"{BATCHES}_sum", size=str(s)) for s, count in sorted(counts.items()) if count},
        relative=[round(value / fmean(values), 3) for values in groups for value in values],
        bystanders=result.bystanders,
    )


def _metrics(target: Target) -> Metrics:
    try:
        answer = requests.get(target.metrics_url, timeout=TIMEOUT_S)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise CurveError(f"no metrics at {target.metrics_url}: {error}") from error
    return parse(answer.text)


def save(curve: Curve, path: Path) -> None:
    """Write a curve without the single durations, which its spread sums up."""
    loops = [msgspec.structs.replace(loop, relative=[]) for loop in curve.loops]
    msgspec.structs.replace(curve, loops=loops).save(path)
