"""The HTTP gate of a replica: nginx before TorchServe, which alone can stop without losing a request."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from server.errors import StartFailed, Stopped
from server.process import ROOT, TorchServe

START_TIMEOUT_S = 10.0
# Where Debian puts it; not on every PATH.
PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


class Gate:
    """`with Gate(server, port, metrics_port) as gate:` accepts requests on all addresses and hands them on.

    `GET /health/ready` answers 200 after `show_ready(True)`, and 503 otherwise.

    Raises:
        StartFailed: on entering: nginx is not installed, or a port is taken.
    """

    def __init__(self, server: TorchServe, port: int, metrics_port: int) -> None:
        self._server = server
        self._port = port
        self._metrics_port = metrics_port
        self._folder = Path(tempfile.mkdtemp(prefix="vla-gate-"))
        self._folder.chmod(0o755)  # started by root, nginx works as another user
        self._process: subprocess.Popen[bytes] | None = None

    def show_ready(self, ready: bool) -> None:
        """Set what `/health/ready` answers."""
        if ready:
            (self._folder / "ready").write_text('{"status": "ready"}\n')
        else:
            (self._folder / "ready").unlink(missing_ok=True)

    def poll(self) -> int | None:
        """Return nginx's exit status when it ended by itself, None while it runs."""
        return self._running().poll()

    def drain(self, timeout_s: float) -> None:
        """Take no new request, and return when every request that was taken is answered.

        Raises:
            Stopped: some were not answered within `timeout_s`.
        """
        self.show_ready(False)
        self._running().send_signal(signal.SIGQUIT)
        try:
            self._running().wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Stopped(f"requests were still open {timeout_s:g} s after the signal to stop") from None

    def __enter__(self) -> Self:
        nginx = shutil.which("nginx") or shutil.which("nginx", path=PLACES)
        if nginx is None:
            raise StartFailed("nginx is not installed here: the gate needs it (apt-get install nginx)")
        config = self._folder / "gate.conf"
        config.write_text(self._config())
        command = [nginx, "-p", self._folder, "-e", "stderr", "-c", config]
        self._process = subprocess.Popen(command, start_new_session=True)
        try:
            self._wait_open()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise Stopped("the gate is not open: use it as a context manager")
        return self._process

    def _config(self) -> str:
        config = (ROOT / "docker" / "gate.conf").read_text()
        values = {
            "folder": self._folder,
            "port": self._port,
            "metrics_port": self._metrics_port,
            "inference": self._server.port,
            "metrics": self._server.port + 2,
        }
        for name, value in values.items():
            config = config.replace(f"@{name}@", str(value))
        return config

    def _wait_open(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if (status := self._running().poll()) is not None:
                raise StartFailed(
                    f"nginx ended with status {status}: port {self._port} or {self._metrics_port}?"
                )
            with contextlib.suppress(requests.RequestException):
                requests.get(f"http://127.0.0.1:{self._port}/health/ready", timeout=1)
                return
            time.sleep(0.05)
        raise StartFailed(f"nginx did not open port {self._port} within {START_TIMEOUT_S:g} s")

    def _end(self) -> None:
        process = self._running()
        if process.poll() is None:
            process.terminate()  # requests in flight are cut off: `drain` first
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # nginx's workers
        process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
