"""A model's workers, by TorchServe's management port."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import requests

from server.errors import LoadFailed

Describe = Callable[[], Mapping[str, Any]]
POLL_S = 0.2


@dataclass(frozen=True)
class Workers:
    """How many workers a policy has."""

    # Those that compute.
    ready: int
    # Those that it is to have, at least 1.
    wanted: int


def wait_loaded(describe: Describe, name: str, count: int, timeout_s: float) -> None:
    """Return when a model has `count` workers, all READY.

    Args:
        describe: returns what TorchServe says of the model
        name: of the model, for errors
        count: how many workers there must be
        timeout_s: longest wait [s]

    Raises:
        LoadFailed: one died while it loaded, and came back as another process; or they took too long.
    """
    deadline = time.monotonic() + timeout_s
    processes: dict[str, set[int]] = {}
    while time.monotonic() < deadline:
        found = describe()["workers"]
        if len(found) >= count and {worker["status"] for worker in found} == {"READY"}:
            return
        for worker in found:
            seen = processes.setdefault(worker["id"], set())
            if worker["pid"] > 0:
                seen.add(worker["pid"])
            if len(seen) > 1:
                raise LoadFailed(f"a worker of {name} failed to load; see the log")
        time.sleep(POLL_S)
    raise LoadFailed(f"no worker of {name} was ready within {timeout_s:g} s")


def on_gpu(model: Mapping[str, Any]) -> bool:
    """Whether TorchServe has promised a GPU to a model's workers."""
    return any(worker.get("gpu") for worker in model["workers"])


def scale(url: str, name: str, count: int, timeout_s: float) -> None:
    """Give a model `count` workers; where they can't be loaded it gets back to as many as it had.

    Args:
        url: the model's at the management port
        name: as for `wait_loaded`
        count: how many workers it is to have
        timeout_s: longest wait for them [s]

    Raises:
        LoadFailed: see `wait_loaded`.
        requests.RequestException: TorchServe refuses.
    """

    def describe() -> Mapping[str, Any]:
        answer = requests.get(url, timeout=30)
        answer.raise_for_status()
        return answer.json()[0]

    before = int(describe()["minWorkers"])
    _set(url, count)
    try:
        wait_loaded(describe, name, count, timeout_s)
    except LoadFailed:
        _set(url, before)
        raise


def _set(url: str, count: int) -> None:
    # Otherwise a thread of the front end waits, and the requests on it.
    query = {"min_worker": count, "max_worker": count, "synchronous": "false"}
    requests.put(url, params=query, timeout=30).raise_for_status()
