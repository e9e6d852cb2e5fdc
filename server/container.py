"""`python -m server.container`: one replica, as images run it.

Checks the archives' digests, starts TorchServe on loopback, warms it up, then opens the gate. SIGTERM closes
the gate, lets every request that was taken be answered, and stops TorchServe.
"""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from archive.digest import verify_digest
from archive.errors import ArchiveError
from server.errors import ServerError, Stopped
from server.front_end import Memory
from server.gate.gate import Gate
from server.java import JavaNotFound
from server.process import WORKERS_PER_GPU, TorchServe
from server.warm_up import warm_up

# How often readiness is asked [s]; `/health/ready` is at most so old.
POLL_S = 1.0


def main() -> int:
    """Serve until SIGTERM and drained: 0. Refused, failed, ended by itself, or not drained in time: 1."""
    options = _parse()
    signal.signal(signal.SIGTERM, _end_at_once)
    signal.signal(signal.SIGINT, _end_at_once)
    try:
        archives = options.archive or [Path("/models/vla.mar")]
        digests = _digests(archives, options.sha256)
        server = TorchServe(
            archives,
            port=options.torchserve_port,
            startup_timeout_s=options.startup_timeout_s,
            memory=Memory(options.heap_mib, options.direct_memory_mib),
            model_api=True,
            gated=True,
            workers_per_gpu=options.workers_per_gpu,
            on_log=_say,
        )
        for archive, digest in zip(server.archives, digests, strict=True):
            _say(f"starting {archive.name} {archive.version} of {archive.path}, SHA-256 {digest}")
        with server:
            warm_up(server, options.warm_up_requests)
            with Gate(server, options.port, options.metrics_port) as gate:
                _serve(server, gate, options.drain_delay_s, options.drain_timeout_s)
    except (ArchiveError, ServerError, JavaNotFound) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    _say("stopped")
    return 0


def _serve(server: TorchServe, gate: Gate, drain_delay_s: float, drain_timeout_s: float) -> None:
    """Watch both processes until a signal, then drain.

    Raises:
        Stopped: one of them ended by itself, or requests were left when the drain timed out.
    """
    stop = threading.Event()

    def ask_to_stop(number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    gate.show_workers(server.workers())
    _say("ready")
    while not stop.wait(POLL_S):
        _require_alive(server, gate)
        gate.show_workers(server.workers())
    _say("stopping: not ready any more, requests that were taken are answered")
    gate.show_stopping()
    threading.Event().wait(drain_delay_s)  # until load balancers have noticed
    gate.drain(drain_timeout_s)
    if (status := server.poll()) is not None:
        raise Stopped(f"TorchServe ended with status {status} during the drain")


def _require_alive(server: TorchServe, gate: Gate) -> None:
    if (status := server.poll()) is not None:
        raise Stopped(f"TorchServe ended by itself with status {status}")
    if not gate.alive():
        raise Stopped("the gate ended by itself")


def _digests(archives: Sequence[Path], expected: Sequence[str] | None) -> list[str]:
    """Check every archive's digest, and return them."""
    if expected and len(expected) != len(archives):
        raise ArchiveError(f"--sha256 is given {len(expected)} times for {len(archives)} archives")
    return [verify_digest(*pair) for pair in zip(archives, expected or [None] * len(archives), strict=True)]


def _end_at_once(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)  # nothing was taken yet


def _say(line: str) -> None:
    print(line, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m server.container",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    memory = Memory()
    add = parser.add_argument
    add(
        "--archive",
        type=Path,
        action="append",
        help="archive to serve at /predictions/<its name>; may be given several times (/models/vla.mar)",
    )
    add(
        "--sha256",
        action="append",
        help="digests of the archives, in their order; default: the first word of each <archive>.sha256",
    )
    add("--port", type=int, default=8080, help="port for requests, on all addresses")
    add("--metrics-port", type=int, default=8082, help="port of GET /metrics, on all addresses")
    add(
        "--torchserve-port",
        type=int,
        default=8090,
        help="TorchServe's inference port; + 1 is management, all on loopback",
    )
    add(
        "--startup-timeout-s",
        type=float,
        help="give up when not ready after this time [s]; by default as the archives say, mostly 300",
    )
    add("--warm-up-requests", type=int, default=100, help="example requests posted before the gate opens")
    add("--drain-delay-s", type=float, default=0.0, help="between `not ready` and the closing gate [s]")
    add("--drain-timeout-s", type=float, default=60.0, help="longest wait for requests that were taken [s]")
    add(
        "--workers-per-gpu",
        type=int,
        default=WORKERS_PER_GPU,
        help="workers of a policy on a GPU, as far as its memory allows: one prepares while another computes",
    )
    add("--heap-mib", type=int, default=memory.heap_mib, help="heap of the Java front end [MiB]")
    add("--direct-memory-mib", type=int, default=memory.direct_mib, help="its network buffers [MiB]")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
