"""The HTTP gate before TorchServe: the first hop, whatever way the server is started."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from pathlib import Path
from types import TracebackType
from typing import Self

import uvloop

from server.errors import Stopped
from server.gate.client import Client
from server.gate.hop import SWEEP_S, Hop
from server.gate.queue import Room
from server.gate.scrape import Scrape
from server.ports import PORTS, bind, free_port
from server.process import WORKERS_PER_GPU, TorchServe
from server.workers import Workers

BACKLOG = 1024
# How soon the gate's thread gets its turn among this process's others [s].
SWITCH_S = 0.0005
# Of our own handler, which reads MessagePack: the file that export puts into every archive.
HANDLER = "vla_handler.py"


class Gate:
    """`with Gate(server, port, metrics_port) as gate:` accepts requests and hands them on to TorchServe.

    It runs in a thread of its own. `GET /health/ready` answers 200 while the last `show_workers` had one that
    is ready for every policy, 503 otherwise.

    Raises:
        PortTaken: on creation: one of the ports is taken.
    """

    def __init__(
        self,
        server: TorchServe,
        port: int,
        metrics_port: int,
        host: str = "0.0.0.0",
        metrics_host: str = "0.0.0.0",
    ) -> None:
        self._server = server
        self.url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        metrics = bind(metrics_host, metrics_port, "metrics", metrics_port - port)
        self._sockets = bind(host, port, "inference", 0), metrics
        self._rooms: dict[str, Room] = {}
        self._started: Future[Hop] = Future()
        self._loop = uvloop.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)

    def show_workers(self, workers: Mapping[str, Workers]) -> None:
        """Say which workers the policies have now, by their names."""
        self._loop.call_soon_threadsafe(self._started.result().show_workers, workers)

    def show_stopping(self) -> None:
        """Answer `/health/ready` with 503 from now on."""
        self._loop.call_soon_threadsafe(self._started.result().show_stopping)

    def alive(self) -> bool:
        """Whether the gate's thread runs."""
        return self._thread.is_alive()

    def drain(self, timeout_s: float) -> None:
        """Take no new request, and return when every request that was taken is answered.

        Raises:
            Stopped: some were not answered within `timeout_s`.
        """
        draining = asyncio.run_coroutine_threadsafe(self._drain(), self._loop)
        try:
            draining.result(timeout_s)
        except NotDone:
            raise Stopped(f"requests were still open {timeout_s:g} s after the signal to stop") from None

    def __enter__(self) -> Self:
        for archive in self._server.archives:
            capacity = self._server.capacity(archive.name)
            self._rooms[archive.name] = Room.of(*capacity, archive.largest_batch if self._server.gated else 0)
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        self._thread.start()
        self._started.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it ended just now
                self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        ours = {archive.name for archive in self._server.archives if archive.handler == HANDLER}
        hop = Hop(loop, self._server.inference_port, ours, self._rooms, self._server.shared_memory)
        requests, metrics = self._sockets
        self._listening = await loop.create_server(lambda: Client(hop), sock=requests, backlog=BACKLOG)
        scrape = Scrape(self._server.metrics_port, hop.metrics)
        scraped = await asyncio.start_server(scrape.serve, sock=metrics)
        self._started.set_result(hop)
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), SWEEP_S)
            hop.sweep()
        self._listening.close()
        scraped.close()
        scrape.close()
        hop.close()
        await asyncio.sleep(0)  # for the sockets to be closed

    async def _drain(self) -> None:
        self._listening.close()
        hop = self._started.result()
        hop.drain()
        await hop.drained.wait()


@contextlib.contextmanager
def served(
    archive: Path,
    *,
    startup_timeout_s: float | None = None,
    gpus: int = 1,
    workers_per_gpu: int = WORKERS_PER_GPU,
    model_api: bool = False,
    on_log: Callable[[str], None] | None = None,
) -> Iterator[tuple[TorchServe, int]]:
    """Serve an archive on free ports of loopback, behind a ready gate; yields it and the gate's port."""
    port = free_port()
    behind = port + len(PORTS)
    with (
        TorchServe(
            archive,
            port=port,
            inference_port=behind,
            metrics_port=behind + 1,
            startup_timeout_s=startup_timeout_s,
            gpus=gpus,
            workers_per_gpu=workers_per_gpu,
            model_api=model_api,
            gated=True,
            on_log=on_log,
        ) as server,
        Gate(server, port, port + 2, "127.0.0.1", "127.0.0.1") as gate,
    ):
        gate.show_workers(server.workers())
        yield server, port
