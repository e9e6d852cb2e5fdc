"""Closed-loop clients that count what became of every request."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import requests

TIMEOUT_S = 30.0


@dataclass
class Load:
    """`with Load(url, clients=16, files=..., data=...) as load:` posts until its end.

    `outcomes` counts HTTP statuses and, for requests without an answer, the error's type. `views` holds the
    versions that each client saw, in order, each once for as long as it stayed.
    """

    url: str
    clients: int = 16
    files: dict[str, Any] | None = None
    data: dict[str, str] = field(default_factory=lambda: {"command": "x"})
    headers: dict[str, str] = field(default_factory=dict)
    outcomes: Counter[int | str] = field(default_factory=Counter)
    views: list[list[str]] = field(default_factory=list)
    # Answers that were neither 200 nor a refusal with Retry-After.
    wrong: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int, timeout_s: float = 60.0) -> None:
        """Return when `count` more requests were answered with 200."""
        wanted = self.outcomes[200] + count
        deadline = time.monotonic() + timeout_s
        while self.outcomes[200] < wanted:
            assert time.monotonic() < deadline, dict(self.outcomes)
            time.sleep(0.02)

    def _client(self) -> None:
        view: list[str] = []
        self.views.append(view)
        with requests.Session() as session:
            while not self._stop.is_set():
                started = time.monotonic()
                try:
                    answer = session.post(
                        self.url, files=self.files, data=self.data, headers=self.headers, timeout=TIMEOUT_S
                    )
                except requests.RequestException as error:
                    self.outcomes[type(error).__name__] += 1
                    time.sleep(0.05)
                    continue
                self.outcomes[answer.status_code] += 1
                if answer.ok:
                    self.latencies_s.append(time.monotonic() - started)
                    version = answer.json()["version"]
                    if view[-1:] != [version]:
                        view.append(version)
                elif "Retry-After" in answer.headers:
                    time.sleep(0.05)
                else:
                    self.wrong.append(f"{answer.status_code} {answer.text}")


@contextmanager
def in_flight(url: str, count: int, sleep_s: float) -> Iterator[list[requests.Response]]:
    """Post `count` requests at once that take `sleep_s` each; at the end the list holds the answers."""
    answers: list[requests.Response] = []

    def post() -> None:
        answers.append(requests.post(url, files={"sleep": str(sleep_s)}, timeout=TIMEOUT_S))

    threads = [threading.Thread(target=post) for _ in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    yield answers
    for thread in threads:
        thread.join()
