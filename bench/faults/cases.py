"""Each fault of the table: what is done to a running set-up, while robots ask it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import psutil
import requests

from bench.faults import archives
from bench.faults.processes import ROOT
from bench.faults.robots import Robots
from bench.faults.setup import WAYS, Places, SetUp, Way, alone_command, copied, serving
from loadtest.body import MSGPACK
from server.ports import free_port

# What is said of a fault that can't be provoked here.
Skip = str


@dataclass(frozen=True)
class Fault:
    """One line of the table."""

    name: str
    # Does it, and returns what else is to be said; robots ask meanwhile.
    provoke: Callable[[SetUp, Robots], str | None]
    ways: tuple[Way, ...] = WAYS
    # The servers that it needs; those that most need are shared.
    serving: Callable[[Way, Places], contextlib.AbstractContextManager[SetUp]] | None = None
    # Why it can't be provoked on this host.
    skipped: Callable[[], Skip | None] = lambda: None


def _kill_worker(at: SetUp, robots: Robots) -> None:
    robots.pause()
    time.sleep(0.3)  # nothing is under way any more
    at.running.worker.kill()
    robots.resume()


def _kill_worker_in_batch(at: SetUp, _robots: Robots) -> None:
    """Stopped, it holds the batch that it has been given; so it is killed while it has one."""
    worker = at.running.worker
    worker.suspend()
    time.sleep(0.3)
    worker.kill()


def _kill_worker_collecting(at: SetUp, _robots: Robots) -> str:
    """A batch of 3 MB requests is longer than the socket's buffers: the worker has read a part of it."""
    worker = at.running.worker
    worker.suspend()
    statuses: list[int] = []
    threads = [threading.Thread(target=_post_large, args=(at, statuses)) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    worker.kill()
    for thread in threads:
        thread.join()
    return f"two requests of 3 MB that it was reading: {_counted(map(str, statuses))}"


def _post_large(at: SetUp, statuses: list[int]) -> None:
    row = {"image": {"shape": [1000, 1000, 3], "dtype": "uint8", "data": bytes(3_000_000)}}
    statuses.append(_post(at, msgspec.msgpack.encode(row)))


def _post(at: SetUp, body: bytes) -> int:
    """Return the status of one more request; 0: the connection broke."""
    url = f"http://127.0.0.1:{at.port}/predictions/vla"
    with contextlib.suppress(requests.RequestException):
        return requests.post(url, body, headers={"Content-Type": MSGPACK}, timeout=60).status_code
    return 0


def _hang(at: SetUp, _robots: Robots, hung_s: float) -> str:
    worker = at.running.worker
    worker.suspend()
    began = time.monotonic()
    while worker.is_running() and time.monotonic() < began + hung_s:
        time.sleep(0.05)
    if worker.is_running():
        worker.resume()
        return f"it went on by itself after {hung_s:g} s"
    return f"given up after {time.monotonic() - began:.1f} s"


def _tell(at: SetUp, _robots: Robots, what: str) -> str | None:
    """Let the policy fail for 3 s; white pictures are what it may fail on alone."""
    at.switch.write_text(what)
    white = {"image": archives.png(archives.grey(255), at.folder / "white.png")}
    statuses = []
    end_s = time.monotonic() + 3
    try:
        while time.monotonic() < end_s:
            if what == "row":
                statuses.append(str(_post(at, msgspec.msgpack.encode(white))))
            time.sleep(0.05)
    finally:
        at.switch.unlink()
    return f"the row itself: {_counted(statuses)}" if statuses else None


def _damaged_archive(at: SetUp, _robots: Robots, damage: str) -> str:
    """Swap it in, or where there is no swap, start with it."""
    archive = archives.DAMAGES[damage](at.archive, at.folder / f"{damage.rpartition(' ')[2]}.mar")
    if at.way == "deployed":
        port = str(at.running.torchserve_port)
        command = [sys.executable, "-m", "server.swap", archive, "--port", port, "--model", "vla"]
    else:
        command = alone_command(archive, free_port())
    began = time.monotonic()
    run = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    said = next((line for line in run.stderr.splitlines() if line.startswith("error: ")), "nothing")
    said = said.replace(f"{at.folder}/", "").partition(". Its last log lines")[0]
    did = "swap" if at.way == "deployed" else "start"
    return f"{did} refused with status {run.returncode} after {time.monotonic() - began:.1f} s: `{said}`"


def _replaced_archive(at: SetUp, _robots: Robots) -> str:
    """Overwrite the file, then make the server load again: a worker is killed."""
    kept = copied(at.archive, at.folder / "kept.mar")
    other = archives.write_fragile(at.folder / "other.mar", at.switch, "2.0", gain=-0.5)
    try:
        at.archive.write_bytes(other.read_bytes())
        at.running.worker.kill()
        time.sleep(4)
    finally:
        at.archive.write_bytes(kept.read_bytes())
    return "the worker that came after it loads what was unpacked at the start"


def _kill_front_end(at: SetUp, _robots: Robots) -> str:
    at.running.java.kill()
    return _ended(at)


def _kill_gate(at: SetUp, _robots: Robots) -> str:
    """The gate lives in the process that started TorchServe."""
    server = at.servers[0]
    rest = server.family()[:-1]
    os.kill(server.running.process.pid, signal.SIGKILL)
    said = _ended(at)
    left = psutil.wait_procs(rest, timeout=10)[1]
    for process in left:
        process.kill()
    return f"{said}; {len(left)} of its {len(rest)} processes were left behind"


def _ended(at: SetUp) -> str:
    """Wait until the server ended, and say how."""
    server = at.servers[0]
    before, began = len(server.ends), time.monotonic()
    while len(server.ends) == before and time.monotonic() < began + 30:
        time.sleep(0.01)
    if len(server.ends) == before:
        return "the server did not end"
    ended_s, status = server.ends[-1]
    return f"the server ended with status {status} after {ended_s - began:.1f} s and was started again"


def _lose_replica(at: SetUp, _robots: Robots) -> None:
    for process in at.servers[0].family():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _jump(at: SetUp, _robots: Robots) -> str:
    offset = at.folder / "offset"
    for jump_s in (3600, -3600, 0):
        offset.write_text(str(jump_s))
        time.sleep(2)
    return "the clock of gate and worker went by an hour ahead, then back, then right again"


def _fill_disk(at: SetUp, robots: Robots) -> str:
    """Fill the folder of temporary files to the last byte, and kill the worker."""
    small = Path(f"/proc/{at.running.process.pid}/root{at.folder}/small")
    filling = small / "filling"
    with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    statuses: list[int] = []
    _post_large(at, statuses)
    at.running.worker.kill()
    killed_s = time.monotonic()
    served = robots.wait_good(killed_s, 10, 30)
    took_s = time.monotonic() - killed_s
    filling.unlink()
    again = f"after {took_s:.1f} s with the disk still full" if served else "only once there was room"
    return f"a request of 3 MB got {statuses[0]}; the worker was killed too, and another served {again}"


def _leave(at: SetUp, _robots: Robots) -> str:
    """Eight clients hang up right after each request, for 3 s."""
    row = msgspec.msgpack.encode({"image": archives.png(archives.grey(90), at.folder / "left.png")})
    head = f"POST /predictions/vla HTTP/1.1\r\nHost: x\r\nContent-Type: {MSGPACK}\r\n"
    sent = f"{head}Content-Length: {len(row)}\r\n\r\n".encode() + row
    counts = Counter[str]()
    end_s = time.monotonic() + 3

    def leave() -> None:
        while time.monotonic() < end_s:
            with socket.create_connection(("127.0.0.1", at.port), timeout=10) as connection:
                connection.sendall(sent)
            counts["left"] += 1
            time.sleep(0.02)

    _at_once(8, leave)
    return f"{counts['left']} requests whose client was gone"


def _at_once(clients: int, ask: Callable[[], None]) -> None:
    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _dribble(at: SetUp, _robots: Robots) -> str:
    """Twenty clients send a byte of their body every 0.2 s, for 12 s."""
    statuses: list[str] = []

    def dribble() -> None:
        with socket.create_connection(("127.0.0.1", at.port), timeout=0.2) as connection:
            connection.sendall(b"POST /predictions/vla HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(100):
                try:
                    statuses.append(connection.recv(1000)[9:12].decode() or "closed")
                except TimeoutError:
                    connection.sendall(b"x")
                else:
                    return

    _at_once(20, dribble)
    return f"the slow ones: {_counted(statuses)}"


def _idle(at: SetUp, _robots: Robots) -> str:
    connections = [socket.create_connection(("127.0.0.1", at.port), timeout=10) for _ in range(2000)]
    time.sleep(6)
    alive = 0
    for connection in connections:
        connection.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            connection.recv(1)
            continue
        alive += 1
    for connection in connections:
        connection.close()
    return f"{alive} of 2000 were still open after 6 s"


def _drain(at: SetUp, _robots: Robots) -> str:
    at.running.process.send_signal(signal.SIGTERM)
    return _ended(at)


def _counted(kinds: Iterator[str] | list[str]) -> str:
    return ", ".join(f"{kind} x {count}" for kind, count in Counter(kinds).most_common())


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
def _with_clock(way: Way, places: Places) -> Iterator[SetUp]:
    (places.folder / "clock").mkdir(exist_ok=True)
    code = CLOCK.format(file=str(places.folder / "offset"))
    (places.folder / "clock" / "sitecustomize.py").write_text(code)
    with serving(way, places, PYTHONPATH=f"{places.folder / 'clock'}:{ROOT}") as at:
        yield at


def _with_small_disk(way: Way, places: Places) -> contextlib.AbstractContextManager[SetUp]:
    wrap = ("unshare", "-m", "sh", "-c", SMALL_DISK, places.folder / "small")
    return serving(way, places, wrap=wrap)


def _no_mounting() -> Skip | None:
    if os.geteuid() != 0:
        return "mounting a small disk needs root"
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    run = subprocess.run(mount, capture_output=True, text=True, check=False)
    return f"no mount namespace here: {run.stderr.strip()}" if run.returncode else None


FAULTS = (
    Fault("worker killed, idle", _kill_worker),
    Fault("worker killed in mid-batch", _kill_worker_in_batch),
    Fault("worker killed while it reads a batch", _kill_worker_collecting),
    Fault("worker hung for 10 s", partial(_hang, hung_s=10)),
    Fault("worker hung for 45 s", partial(_hang, hung_s=45)),
    Fault("artifact raises on one row", partial(_tell, what="row")),
    Fault("artifact always raises, for 3 s", partial(_tell, what="always")),
    Fault("out of memory in `act`, for 3 s", partial(_tell, what="memory")),
    *(Fault(f"archive {damage}", partial(_damaged_archive, damage=damage)) for damage in archives.DAMAGES),
    Fault("archive replaced while served, worker killed", _replaced_archive),
    Fault("disk full", _fill_disk, serving=_with_small_disk, skipped=_no_mounting),
    Fault("front end (Java) killed", _kill_front_end),
    Fault("gate killed", _kill_gate),
    Fault("two replicas, one lost", _lose_replica, ("deployed",), partial(serving, replicas=2)),
    Fault("clock jumps", _jump, serving=_with_clock),
    Fault("clients that hang up", _leave),
    Fault("slow clients", _dribble),
    Fault("2,000 idle connections", _idle),
    Fault("drain with keep-alive clients", _drain),
)
