"""Faults of the host: its clock jumps, its disk is full."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.faults.processes import ROOT
from bench.faults.robots import Robots
from bench.faults.setup import LARGE, Places, SetUp, Way, serving

# Put before others by PYTHONPATH: Python's clock is off by what a file says.
CLOCK = """
import time
real = time.time

def shifted():
    try:
        with open({file!r}) as file:
            return real() + float(file.read() or 0)
    except OSError:
        return real()

time.time = shifted
"""
SMALL_DISK = 'mkdir -p "$0" && mount -t tmpfs -o size=16m none "$0" && TMPDIR="$0" exec "$@"'


@contextlib.contextmanager
def with_clock(way: Way, places: Places) -> Iterator[SetUp]:
    """Serve with a clock that a file puts off."""
    (places.folder / "clock").mkdir(exist_ok=True)
    code = CLOCK.format(file=str(places.folder / "offset"))
    (places.folder / "clock" / "sitecustomize.py").write_text(code)
    with serving(way, places, PYTHONPATH=f"{places.folder / 'clock'}:{ROOT}") as at:
        yield at


def with_small_disk(way: Way, places: Places) -> contextlib.AbstractContextManager[SetUp]:
    """Serve with 16 MB of room for temporary files."""
    wrap = ("unshare", "-m", "sh", "-c", SMALL_DISK, places.folder / "small")
    return serving(way, places, wrap=wrap)


def no_mounting() -> str | None:
    """Say why a small disk can't be mounted here, where it can't."""
    if os.geteuid() != 0:
        return "mounting a small disk needs root"
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    run = subprocess.run(mount, capture_output=True, text=True, check=False)
    return f"no mount namespace here: {run.stderr.strip()}" if run.returncode else None


def jump(at: SetUp, _robots: Robots) -> str:
    """Put the clock an hour ahead, an hour back, and right again."""
    offset = at.places.folder / "offset"
    for jump_s in (3600, -3600, 0):
        offset.write_text(str(jump_s))
        time.sleep(2)
    return "the clock of gate and worker went by an hour ahead, then back, then right again"


def fill_disk(at: SetUp, robots: Robots) -> str:
    """Fill the folder of temporary files to the last byte, and kill the worker."""
    small = Path(f"/proc/{at.running.process.pid}/root{at.places.folder}/small")
    filling = small / "filling"
    with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    status = at.post(LARGE)
    at.running.worker.kill()
    killed_s = time.monotonic()
    served = robots.wait_good(killed_s, 10, 30)
    took_s = time.monotonic() - killed_s
    filling.unlink()
    again = f"after {took_s:.1f} s with the disk still full" if served else "only once there was room"
    return f"a request of 3 MB got {status}; the worker was killed too, and another served {again}"
