"""`python -m server`: serves one archive in the foreground until SIGTERM or Ctrl-C."""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from archive.errors import ArchiveError
from server.errors import ServerError, Stopped
from server.front_end import Memory
from server.gate.gate import Gate
from server.java import JavaNotFound
from server.ports import PORTS
from server.process import WORKERS_PER_GPU, TorchServe
from server.warm_up import warm_up

# How often readiness is asked, and how long requests that were taken may take when it stops [s].
POLL_S, DRAIN_TIMEOUT_S = 1.0, 10.0


def main() -> int:
    """Serve until stopped: 0. TorchServe could not start, or ended by itself: 1."""
    options = _parse()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        server = TorchServe(
            options.archive or [Path("model_store/vla.mar")],
            port=options.port,
            inference_port=options.port + len(PORTS),
            metrics_port=options.port + len(PORTS) + 1,
            startup_timeout_s=options.startup_timeout_s,
            memory=Memory(options.heap_mib, options.direct_memory_mib),
            gated=True,
            gpus=options.gpus,
            workers_per_gpu=options.workers_per_gpu,
            on_log=_say,
        )
        gate = Gate(server, options.port, options.port + 2, options.host, "127.0.0.1")
        for archive in server.archives:
            _say(f"starting {archive.name} {archive.version} from {archive.path} with {server.java}")
        with server:
            warm_up(server, options.warm_up_requests)
            with gate:
                gate.show_workers(server.workers())
                _say(_greeting(server, gate.url))
                status = _wait(server, gate)
    except (ArchiveError, ServerError, JavaNotFound) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    print(f"error: TorchServe ended by itself with status {status}", file=sys.stderr, flush=True)
    return 1


def _stop(number: int, _frame: FrameType | None) -> None:
    for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)  # a second one must not interrupt the clean-up
    # Not by print, which the signal may have interrupted: a buffer can't be written to twice at once.
    os.write(sys.stdout.fileno(), f"{signal.Signals(number).name}: stopping\n".encode())
    raise SystemExit(0)


def _wait(server: TorchServe, gate: Gate) -> int:
    """Serve until TorchServe ends by itself, and return its status; a signal drains the gate and exits."""
    try:
        while (status := server.poll()) is None:
            time.sleep(POLL_S)
            gate.show_workers(server.workers())
    except SystemExit:
        with contextlib.suppress(Stopped):
            gate.drain(DRAIN_TIMEOUT_S)
        raise
    return status


def _greeting(server: TorchServe, url: str) -> str:
    served = [f"{url}/predictions/{a.name} ({a.name} {a.version})" for a in server.archives]
    lines = [
        f"ready: {', '.join(served)};"
        f" management {server.management_url}, metrics http://127.0.0.1:{server.port + 2}/metrics;"
        " Ctrl-C stops it"
    ]
    if example := server.archive.example:
        images = [
            f"-F {field}=@{_example_file(file, data)}" for field, (file, data) in example.images.items()
        ]
        fields = [f"-F {shlex.quote(f'{field}={text}')}" for field, text in example.fields.items()]
        lines += [
            "try it:",
            " ".join(["  curl", *images, *fields, f"{url}/predictions/{server.archive.name}"]),
        ]
    return "\n".join(lines)


def _example_file(name: str, data: bytes) -> Path:
    """Return a file with the archived example's image: beside its checkpoint, else one that is written."""
    for path in sorted(Path().glob(f"checkpoints/*/{name}")):
        if path.read_bytes() == data:
            return path
    written = Path(tempfile.mkdtemp(prefix="vla-serve-example-")) / name
    written.write_bytes(data)
    return written


def _say(line: str) -> None:
    print(line, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve one archive on TorchServe in the foreground; SIGTERM or Ctrl-C stops it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    memory = Memory()
    add = parser.add_argument
    add(
        "--archive",
        type=Path,
        action="append",
        help="archive to serve at /predictions/<its name>; may be given several times (model_store/vla.mar)",
    )
    add(
        "--port",
        type=int,
        default=8080,
        help="port for requests; on loopback + 1 is management, + 2 metrics, + 3 to + 6 TorchServe's own",
    )
    add("--host", default="127.0.0.1", help="address of the inference port")
    add(
        "--startup-timeout-s",
        type=float,
        help="give up when not ready after this time [s]; by default as the archives say, mostly 300",
    )
    add("--warm-up-requests", type=int, default=20, help="example requests posted before `ready` is said")
    add(
        "--gpus",
        type=int,
        default=1,
        help="visible GPUs that the workers are spread over; 0: serve on the CPU",
    )
    add(
        "--workers-per-gpu",
        type=int,
        default=WORKERS_PER_GPU,
        help="workers of a policy on a GPU, as far as its memory allows: one prepares while another computes",
    )
    add("--heap-mib", type=int, default=memory.heap_mib, help="heap of the Java front end [MiB]")
    add(
        "--direct-memory-mib",
        type=int,
        default=memory.direct_mib,
        help="network buffers of the front end [MiB]",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
