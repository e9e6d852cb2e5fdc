"""One TorchServe process: started, watched until its workers are ready, stopped without orphans."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import requests

from archive.read import Archive
from server.archives import longest_start_s, opened, require_room
from server.errors import LoadFailed, ServerError, StartFailed
from server.front_end import USUAL_MEMORY, Memory, command_line
from server.java import find_java
from server.ports import PORTS, bind
from server.properties import ROOT, Instance
from server.shared_memory import VARIABLE, make_folder
from server.workers import Workers, on_gpu, scale

# Printed by TorchServe whenever a worker ended, whatever ended it.
WORKER_ENDED = "Retry worker: "
LOG_LINES = 500
# For the workers, unless the environment says otherwise. OpenMP's threads wait for each other by spinning;
# where the front end wants the same cores, that was measured to cost up to 40 times the computation.
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
STOP_TIMEOUT_S = 20.0
# Two are enough for one to prepare while the other computes; each has the policy in the GPU's memory.
WORKERS_PER_GPU = 2


class TorchServe:
    """A TorchServe instance that serves one archive or several; others can run beside it on other ports.

    `with TorchServe(archive, port=free_port()) as server:` returns when every worker is READY, and stops the
    process, its workers and its temporary folder at the end; they also end with the thread that started them,
    whatever ends that. `on_log` gets every line that TorchServe prints.
    `model_api` lets archives of the same folder be registered over the management port, for `server.swap`.
    `gated`: requests come through a gate, which makes the batches; otherwise TorchServe makes them.
    `gpus` is how many of the GPUs that CUDA_VISIBLE_DEVICES leaves the workers are spread over, as far as
    there are any; a worker that is promised one never serves on the CPU. On each of them a policy has
    `workers_per_gpu`, as far as its memory allows: one prepares a batch while another computes.

    Raises:
        ArchiveError, PortTaken: before anything is started.
        JavaNotFound: no Java of version 17 or later.
        StartFailed: on entering: TorchServe or a worker ended, or was not ready within `startup_timeout_s`,
            by default what the archives say.
    """

    def __init__(
        self,
        archive: Path | Sequence[Path],
        *,
        port: int = 8080,
        host: str = "127.0.0.1",
        inference_port: int | None = None,
        metrics_port: int | None = None,
        startup_timeout_s: float | None = None,
        memory: Memory = USUAL_MEMORY,
        model_api: bool = False,
        gated: bool = False,
        gpus: int = 1,
        workers_per_gpu: int = WORKERS_PER_GPU,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        self.archives = opened([archive] if isinstance(archive, Path) else archive)
        # The first, whose address is `predictions_url`.
        self.archive = self.archives[0]
        self.host = host
        self.port = port
        # Where requests and scrapes go; elsewhere than at `port` and `port` + 2 where a gate has those.
        self.inference_port = port if inference_port is None else inference_port
        self.metrics_port = port + 2 if metrics_port is None else metrics_port
        self.startup_timeout_s = startup_timeout_s or longest_start_s(self.archives)
        self.memory = memory
        self.model_api = model_api
        self.gated = gated
        self.gpus = 0 if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") else gpus
        self.workers_per_gpu = workers_per_gpu
        self.java = find_java()
        self._on_log = on_log
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._worker_ended = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._folder: Path | None = None
        # Folder by which a gate hands batches to the workers; None: there is none.
        self.shared_memory: Path | None = None

    @property
    def url(self) -> str:
        """Address of the inference API, as a client on this machine reaches it."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.inference_port}"

    @property
    def predictions_url(self) -> str:
        """Where requests are posted."""
        return f"{self.url}/predictions/{self.archive.name}"

    @property
    def management_url(self) -> str:
        """Address of the management API; on loopback."""
        return f"http://127.0.0.1:{self.port + 1}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus scrapes; on loopback."""
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        """Process id of the Java front end; its children are the workers."""
        return self._running().pid

    def log_tail(self, lines: int = 50) -> str:
        """Return the last lines that TorchServe and its workers printed, at most 500."""
        return "\n".join(list(self._log)[-lines:])

    def poll(self) -> int | None:
        """Return TorchServe's exit status when it ended by itself, None while it runs."""
        return self._running().poll()

    def wait(self) -> int:
        """Block until TorchServe ends by itself, and return its exit status."""
        return self._running().wait()

    def capacity(self, name: str) -> tuple[int, int, int]:
        """Return a model's largest batch, its workers, and the length of its queue; it must be ready.

        Raises:
            StartFailed: TorchServe does not say.
        """
        try:
            (model,) = requests.get(f"{self.management_url}/models/{name}", timeout=5).json()
            queue = model["jobQueueStatus"]
            length = queue["remainingCapacity"] + queue["pendingRequests"]
            return max(1, model["batchSize"]), max(1, model["maxWorkers"]), length
        except (requests.RequestException, ValueError, KeyError) as error:
            raise self._failed(f"TorchServe does not say how many requests {name} takes: {error}") from error

    def ready(self) -> bool:
        """Whether every policy has a worker that is READY; /ping says 200 with no model loaded."""
        return all(found.ready for found in self.workers().values())

    def workers(self) -> dict[str, Workers]:
        """Return each policy's workers by its name; none is ready where TorchServe does not say."""
        return {archive.name: self._workers(archive) for archive in self.archives}

    def _workers(self, archive: Archive) -> Workers:
        try:
            answer = requests.get(f"{self.management_url}/models/{archive.name}", timeout=5)
        except requests.RequestException:
            return Workers(0, 1)
        if answer.status_code == 404:  # the archives are registered before the port opens
            raise self._failed(f"TorchServe did not load {archive.path.name}")
        if not answer.ok:
            return Workers(0, 1)
        (model,) = answer.json()
        ready = [worker for worker in model["workers"] if worker["status"] == "READY"]
        return Workers(len(ready), max(1, model["minWorkers"]))

    def __enter__(self) -> Self:
        try:
            self._start()
            self._wait_ready()
            for archive in self.archives:
                self._share_gpus(archive.name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End TorchServe and its workers. Requests in flight are cut off: drain the proxy first."""
        if self._process:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
            # The process group outlives its leader as long as one worker hangs.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process and self._process.stdout and self._reader:
            self._reader.join()
            self._process.stdout.close()
        for folder in (self._folder, self.shared_memory):
            if folder:
                shutil.rmtree(folder, ignore_errors=True)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise ServerError("TorchServe is not started: use it as a context manager")
        return self._process

    def _start(self) -> None:
        self._require_free()
        # Worker sockets, unpacked archives and the working directory: never shared between instances.
        self._folder = Path(tempfile.mkdtemp(prefix="vla-serve-"))
        require_room(self.archives)
        self.shared_memory = make_folder() if self.gated else None
        config = self._folder / "config.properties"
        own = self._instance().properties(self._folder)
        config.write_text((ROOT / "config.properties").read_text() + own)
        self._process = subprocess.Popen(
            command_line(self.java, self.memory, self._folder, config),
            cwd=self._folder,
            env=self._environment(self._folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Its own process group: Ctrl-C reaches this process alone, which then stops all of them in order.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read_log, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def _environment(self, folder: Path) -> dict[str, str]:
        own = {"TEMP": str(folder), "PYTHONUNBUFFERED": "1", VARIABLE: str(self.shared_memory or "")}
        return {**WORKER_ENVIRONMENT, **os.environ, **own}

    def _require_free(self) -> None:
        ports = (self.inference_port, self.port + 1, self.metrics_port, self.port + 3, self.port + 4)
        for place, (port, use) in enumerate(zip(ports, PORTS, strict=True)):
            bind("127.0.0.1" if place else self.host, port, use, port - self.port).close()

    def _instance(self) -> Instance:
        return Instance(
            archives=self.archives,
            host=self.host,
            port=self.port,
            inference_port=self.inference_port,
            metrics_port=self.metrics_port,
            model_api=self.model_api,
            gated=self.gated,
            gpus=self.gpus,
        )

    def _read_log(self, output: IO[str]) -> None:
        for line in output:
            if WORKER_ENDED in line:
                self._worker_ended.set()
            self._say(line.rstrip("\n"))

    def _say(self, line: str) -> None:
        self._log.append(line)
        if self._on_log:
            self._on_log(line)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self.startup_timeout_s
        while time.monotonic() < deadline:
            if (status := self._running().poll()) is not None:
                raise self._failed(f"TorchServe ended with status {status} before it was ready")
            if self._worker_ended.is_set():
                time.sleep(0.5)  # for the rest of its log
                names = " or ".join(archive.path.name for archive in self.archives)
                raise self._failed(f"a worker of {names} ended while it loaded")
            if all(found.ready >= found.wanted for found in self.workers().values()):
                return
            time.sleep(0.1)
        raise self._failed(f"no worker was ready within {self.startup_timeout_s:g} s (--startup-timeout-s)")

    def _share_gpus(self, name: str) -> None:
        """Give a policy that is computed on GPUs its further workers, one policy after the other."""
        url, count = f"{self.management_url}/models/{name}", self.workers_per_gpu * self.gpus
        try:
            (model,) = requests.get(url, timeout=5).json()
            if on_gpu(model) and model["minWorkers"] < count:
                scale(url, name, count, self.startup_timeout_s)
        except LoadFailed as error:
            self._say(f"{name} has fewer workers than {self.workers_per_gpu} a GPU: {error}")
        except (requests.RequestException, ValueError, KeyError) as error:
            raise self._failed(f"TorchServe does not say which workers {name} has: {error}") from error

    def _failed(self, what: str) -> StartFailed:
        said = [match[1] for line in self._log if (match := re.search(r" MODEL_LOG - (.*)", line))]
        return StartFailed(f"{what}. Its last log lines:\n" + "\n".join((said or list(self._log))[-40:]))
