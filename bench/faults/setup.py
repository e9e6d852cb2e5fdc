"""The two ways of serving that faults are provoked in, each kept running as a container's runtime does."""

import contextlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
import numpy as np
import psutil
import requests

from bench.faults import archives
from bench.faults.processes import Running, end, proxy, replica_command, start, wait_ready
from bench.faults.robots import Ask
from loadtest.body import MSGPACK
from server.ports import free_port

Way = Literal["deployed", "alone"]
WAYS: tuple[Way, ...] = ("deployed", "alone")
HEADERS = {"Content-Type": MSGPACK}
# A picture longer than any buffer on its way: 3 MB of raw pixels.
LARGE = {"image": {"shape": [1000, 1000, 3], "dtype": "uint8", "data": bytes(3_000_000)}}
# Brightness of the robots' pictures.
GREYS = (60, 120, 180)
GAIN = 0.5
# Between an end and the next start, as a container's runtime waits at first [s].
RESTART_S = 0.1


class Kept:
    """A program that is started again whenever it ends."""

    def __init__(self, begin: Callable[[], Running], ready_port: int) -> None:
        self._begin, self._ready_port = begin, ready_port
        self._stop = threading.Event()
        # When it ended [s on the monotonic clock], and its status.
        self.ends: list[tuple[float, int]] = []

    def __enter__(self) -> Self:
        self.running = self._begin()
        try:
            wait_ready(self.running, self._ready_port)
        except BaseException:
            end(self.running)
            raise
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        family = self.family()
        end(self.running)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def family(self) -> list[psutil.Process]:
        """Return the program's processes, the first of them last."""
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(self.running.process.pid)
            return [*first.children(recursive=True), first]
        return []

    def _keep(self) -> None:
        while not self._stop.wait(0.02):
            if (status := self.running.process.poll()) is not None:
                self.ends.append((time.monotonic(), status))
                if not self._stop.wait(RESTART_S):
                    self.running = self._begin()


@dataclass(frozen=True)
class Places:
    """Where everything of a run lies: readable to nginx's workers, another user's."""

    # The model store, and the archive in it.
    folder: Path
    archive: Path
    # What the policy is told: see `bench.faults.fragile`.
    switch: Path
    # The robots' requests.
    asks: list[Ask]

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> "Iterator[Places]":
        """Export the policy into a folder of its own."""
        with tempfile.TemporaryDirectory(prefix="vla-faults-") as name:
            folder = Path(name)
            folder.chmod(0o755)
            switch = folder / "switch"
            archive = archives.write_fragile(folder / "vla.mar", switch, gain=GAIN)
            yield cls(folder, archive, switch, [_ask(value, folder / "grey.png") for value in GREYS])


@dataclass(frozen=True)
class SetUp:
    """Running servers, and how they are reached."""

    way: Way
    # Where robots ask.
    port: int
    servers: list[Kept]
    places: Places

    @property
    def running(self) -> Running:
        """The first server, as it runs now."""
        return self.servers[0].running

    def post(self, row: Mapping[str, object]) -> int:
        """Return the status of one more request; 0: the connection broke."""
        url, body = f"http://127.0.0.1:{self.port}/predictions/vla", msgspec.msgpack.encode(row)
        with contextlib.suppress(requests.RequestException):
            return requests.post(url, body, headers=HEADERS, timeout=60).status_code
        return 0


def _ask(value: int, file: Path) -> Ask:
    """Return a request with a picture of this brightness, and its answer."""
    row, right = {"image": archives.png(archives.grey(value), file)}, GAIN * value / 255
    return Ask(msgspec.msgpack.encode(row), HEADERS, np.array([[right, -right]]))


@contextlib.contextmanager
def serving(
    way: Way, places: Places, replicas: int = 1, wrap: tuple[object, ...] = (), **environment: object
) -> Iterator[SetUp]:
    """Serve the policy one way; `wrap` is put before each server's command."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_kept(way, places, wrap, environment)) for _ in range(replicas)]
        ports = [server.running.port for server in servers]
        port = stack.enter_context(proxy(places.folder, *ports)).port if way == "deployed" else ports[0]
        yield SetUp(way, port, servers, places)


def _kept(way: Way, places: Places, wrap: tuple[object, ...], environment: dict[str, object]) -> Kept:
    first = free_port()
    log = places.folder / f"server-{first}.log"
    if way == "deployed":
        port, command = first + 5, replica_command([places.archive], first)
    else:
        port, command = first, alone_command(places.archive, first)
    return Kept(lambda: start([*wrap, *command], port, log, first, environment), port)


def alone_command(archive: Path, port: int) -> list[object]:
    """Return how `python -m server` is run by hand."""
    return [sys.executable, "-m", "server", "--archive", archive, "--port", port]


def copied(archive: Path, target: Path) -> Path:
    """Copy an archive and its digest."""
    shutil.copy(archive, target)
    return archives.with_digest(target)
