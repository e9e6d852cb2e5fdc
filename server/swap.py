"""`python -m server.swap NEW.mar`: another version of the served policy, without a lost request.

Registers the archive beside the served one, waits for its workers, posts its archived example, makes it the
default, waits until the old version is idle, and removes that. Whatever fails before the old version is
removed rolls back to it. The archive must lie in the model store, and TorchServe must run with `model_api`
(images do). A restarted replica serves the archive that it is started with: name the new one there as well.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from archive.compare import mismatch
from archive.digest import verify_digest
from archive.errors import ArchiveError
from archive.read import Archive
from server.archives import require_room
from server.errors import LoadFailed, ServerError, SwapError
from server.warm_up import post_example
from server.workers import on_gpu, scale, wait_loaded

WARM_UP_REQUESTS = 20


@dataclass(frozen=True)
class Swap:
    """One replica's change of version."""

    new: Archive
    # TorchServe's inference and management API.
    inference_url: str
    management_url: str
    # The served model's name.
    model: str
    # Longest wait for the new version's workers, and for the old one to become idle [s].
    timeout_s: float
    # How long the old version must have nothing to do before it is removed [s]; longer than one batch takes.
    settle_s: float

    def run(self) -> str:
        """Swap, and return the version that was replaced.

        Raises:
            SwapError: refused or failed; the old version serves on.
        """
        old = self._describe("")
        if old["modelVersion"] == self.new.version:
            raise SwapError(
                f"{self.model} {self.new.version} is what is served; export with another --version"
            )
        batch = int(old["batchSize"])
        if batch == 1 and not self.new.largest_batch:
            raise SwapError(f"{self.new.path.name} takes no batch of the gate's; export it again")
        workers = int(old["minWorkers"])
        # A GPU may have no room for all workers of two versions.
        at_first = 1 if on_gpu(old) else workers
        try:
            self._register(at_first, batch, int(old["maxBatchDelay"]))
            self._check(f"{self.inference_url}/predictions/{self.model}/{self.new.version}")
            self._make_default(self.new.version)
            self._check(f"{self.inference_url}/predictions/{self.model}")
        except BaseException:
            self._roll_back(old["modelVersion"])
            raise
        self._wait_idle(old["modelVersion"])
        self._manage("DELETE", f"/{old['modelVersion']}")
        if at_first < workers:
            self._complete(workers)
        return old["modelVersion"]

    def _complete(self, workers: int) -> None:
        """Give the new version as many workers as the old one had."""
        url, name = f"{self.management_url}/models/{self.model}", f"{self.model} {self.new.version}"
        try:
            scale(f"{url}/{self.new.version}", name, workers, self.timeout_s)
        except LoadFailed as error:
            _say(f"{name} serves with fewer workers than the old one had: {error}")

    def _register(self, workers: int, batch: int, delay_ms: int) -> None:
        query = {
            "url": self.new.path.name,
            "model_name": self.model,
            "initial_workers": workers,
            # As they are: whoever makes the batches goes on doing so.
            "batch_size": batch,
            "max_batch_delay": delay_ms,
            # Otherwise a thread of the front end waits, and the requests on it.
            "synchronous": "false",
        }
        answer = requests.post(f"{self.management_url}/models", params=query, timeout=self.timeout_s)
        _require_ok(answer, f"registering {self.new.path.name}")
        _say(f"registered {self.model} {self.new.version}; waiting for its workers")
        self._wait_loaded(workers)

    def _wait_loaded(self, workers: int) -> None:
        version = self.new.version
        try:
            wait_loaded(
                lambda: self._describe(f"/{version}"), f"{self.model} {version}", workers, self.timeout_s
            )
        except LoadFailed as error:
            raise SwapError(str(error)) from error

    def _check(self, url: str) -> None:
        """Post the archived example and compare the answer; several times, which warms the version up."""
        if self.new.example is None or self.new.policy is None:
            raise SwapError(f"{self.new.path.name} has no example request to check it with")
        with requests.Session() as session:
            for _ in range(WARM_UP_REQUESTS):
                answer = post_example(session, url, self.new.example, self.timeout_s)
                _require_ok(answer, f"the archived example, posted to {url},")
                body = answer.json()
                if body["version"] != self.new.version:
                    raise SwapError(f"{url} is answered by {body['version']}, expected {self.new.version}")
                if wrong := mismatch(self.new.policy, body["actions"]):
                    raise SwapError(f"{url}: {wrong}")
        _say(f"the archived example was answered as recorded by {url}")

    def _wait_idle(self, version: str) -> None:
        """Return when a version had an empty queue for `settle_s`; removing one drops what it has."""
        deadline, idle_since = time.monotonic() + self.timeout_s, time.monotonic()
        while time.monotonic() - idle_since < self.settle_s:
            if time.monotonic() > deadline:
                raise SwapError(f"{version} still has requests after {self.timeout_s:g} s; remove it by hand")
            if self._describe(f"/{version}")["jobQueueStatus"]["pendingRequests"]:
                idle_since = time.monotonic()
            time.sleep(0.1)

    def _make_default(self, version: str) -> None:
        self._manage("PUT", f"/{version}/set-default")
        _say(f"{self.model} {version} is the default")

    def _roll_back(self, old: str) -> None:
        """Make the old version the default again and remove the new one, as far as it got."""
        self._manage("PUT", f"/{old}/set-default")
        answer = requests.get(f"{self.management_url}/models/{self.model}/{self.new.version}", timeout=30)
        if answer.ok:
            self._wait_idle(self.new.version)
            self._manage("DELETE", f"/{self.new.version}")
        _say(f"rolled back to {self.model} {old}")

    def _describe(self, version: str) -> dict[str, Any]:
        return self._manage("GET", version).json()[0]

    def _manage(self, method: str, path: str) -> requests.Response:
        url = f"{self.management_url}/models/{self.model}{path}"
        try:
            answer = requests.request(method, url, timeout=self.timeout_s)
        except requests.RequestException as error:
            raise SwapError(f"{method} {url} failed: {error}") from error
        _require_ok(answer, f"{method} {url}")
        return answer


def _served(management_port: int, archive: Path) -> str:
    """Return the name of the policy that is served; of several, the one that the archive is named after."""
    answer = requests.get(f"http://127.0.0.1:{management_port}/models", timeout=30)
    _require_ok(answer, "asking what is served")
    names = [model["modelName"] for model in answer.json()["models"]]
    if len(names) == 1:
        return names[0]
    if archive.stem in names:
        return archive.stem
    raise SwapError(f"which of {', '.join(names)} is to be replaced? Name it by --model")


def _require_ok(answer: requests.Response, what: str) -> None:
    if not answer.ok:
        raise SwapError(f"{what} got {answer.status_code}: {answer.text.strip()}")


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    """Swap: 0. Refused or rolled back: 1."""
    options = _parse()
    try:
        verify_digest(options.archive, options.sha256)
        new = Archive.open(options.archive)
        require_room([new])
        swap = Swap(
            new=new,
            inference_url=f"http://127.0.0.1:{options.port}",
            management_url=f"http://127.0.0.1:{options.port + 1}",
            model=options.model or _served(options.port + 1, options.archive),
            timeout_s=options.timeout_s or new.startup_timeout_s,
            settle_s=options.settle_s,
        )
        old = swap.run()
    except (ArchiveError, ServerError, requests.RequestException) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    _say(f"{swap.model} {swap.new.version} serves; {old} is removed")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m server.swap",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("archive", type=Path, help="the new version's archive, in the model store")
    add("--sha256", help="its digest; default: the first word of <archive>.sha256")
    add("--model", help="name of the policy to replace, where several are served")
    add("--port", type=int, default=8090, help="TorchServe's inference port on loopback; + 1 is management")
    add(
        "--timeout-s",
        type=float,
        help="longest wait for the new version to be ready [s]; by default as its archive says, mostly 300",
    )
    add("--settle-s", type=float, default=2.0, help="idle time of the old version before it is removed [s]")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
