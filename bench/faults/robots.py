"""Robots that ask at a steady rate, know the right answers, and note what became of every request."""

import http.client
import json
import select
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from loadtest.answers import read_error

TIMEOUT_S = 60.0
TOLERANCE = 1e-4
GOOD = "200"
# Requests that were taken and never answered.
LOST = ("reset", "no answer")
NOT_TAKEN = "no connection"


@dataclass(frozen=True)
class Ask:
    """A request, and what must come back."""

    body: bytes
    headers: dict[str, str]
    # float [T, A]
    actions: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    # `200`, status and code of a refusal, one of LOST, or NOT_TAKEN.
    kind: str
    # On the monotonic clock [s].
    sent_s: float
    ended_s: float
    # Of a 200: whether it is the right answer.
    right: bool = True


@dataclass(frozen=True)
class Seen:
    """What robots saw since a moment."""

    # Requests by what became of them.
    kinds: dict[str, int]
    lost: int
    # Answers with 200 that are not right.
    wrong: int
    # From the moment to the first good answer after the last that was none [s]; 0: no bad one; None: never.
    again_s: float | None
    # The longest wait for an answer with 200 [s].
    slowest_s: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], since_s: float) -> "Seen":
        """Summarise the requests that ended since a moment on the monotonic clock."""
        ours = sorted((o for o in outcomes if o.ended_s >= since_s), key=lambda o: o.ended_s)
        kinds = Counter(outcome.kind for outcome in ours)
        bad_s = max((o.ended_s for o in ours if o.kind != GOOD), default=None)
        good = [outcome for outcome in ours if outcome.kind == GOOD]
        after = [outcome.ended_s for outcome in good if bad_s is None or outcome.ended_s > bad_s]
        again_s = 0.0 if bad_s is None else (after[0] - since_s if after else None)
        return cls(
            kinds=dict(kinds.most_common()),
            lost=sum(kinds[kind] for kind in LOST),
            wrong=sum(not outcome.right for outcome in good),
            again_s=again_s,
            slowest_s=max((outcome.ended_s - outcome.sent_s for outcome in good), default=0.0),
        )


@dataclass
class Robots:
    """`with Robots(port, asks) as robots:` sends each request `hz` times a second until its end."""

    port: int
    asks: Sequence[Ask]
    hz: float = 10.0
    path: str = "/predictions/vla"
    outcomes: list[Outcome] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop, self._go = threading.Event(), threading.Event()
        self._go.set()
        self._threads = [
            threading.Thread(target=self._robot, args=(ask, index / len(self.asks) / self.hz), daemon=True)
            for index, ask in enumerate(self.asks)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._go.set()
        for thread in self._threads:
            thread.join()

    def pause(self) -> None:
        """Send nothing until `resume`."""
        self._go.clear()

    def resume(self) -> None:
        """Send again."""
        self._go.set()

    def wait_good(self, since_s: float, count: int, timeout_s: float) -> bool:
        """Return when the last `count` requests that ended since a moment were good; False: not in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            last = [o for o in self.outcomes[-4 * count :] if o.ended_s >= since_s][-count:]
            if len(last) == count and all(outcome.kind == GOOD for outcome in last):
                return True
            time.sleep(0.05)
        return False

    def _robot(self, ask: Ask, offset_s: float) -> None:
        connection = _Connection(self.port, self.path)
        due_s = time.monotonic() + offset_s
        while not self._stop.is_set():
            self._go.wait()
            now_s = time.monotonic()
            if due_s > now_s:
                self._stop.wait(due_s - now_s)
                continue
            # A robot that had to wait goes on from now: it does not send what it missed.
            due_s = max(due_s + 1 / self.hz, now_s)
            self.outcomes.append(connection.asked(ask))
        connection.close()


class _Connection:
    """A robot's kept connection."""

    def __init__(self, port: int, path: str) -> None:
        self._port, self._path = port, path
        self._connection: http.client.HTTPConnection | None = None

    def asked(self, ask: Ask) -> Outcome:
        """Send a request and return what became of it."""
        sent_s = time.monotonic()
        kind, right = self._exchange(ask)
        if kind in LOST:
            self.close()
        return Outcome(kind, sent_s, time.monotonic(), right)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _exchange(self, ask: Ask) -> tuple[str, bool]:
        try:
            connection = self._connected()
        except OSError:
            self.close()
            return NOT_TAKEN, True
        try:
            connection.request("POST", self._path, ask.body, ask.headers)
            answer = connection.getresponse()
            body = answer.read()
        except TimeoutError:
            return "no answer", True
        except (OSError, http.client.HTTPException):
            return "reset", True
        if answer.status != 200:
            return f"{answer.status} {read_error(body)[0]}", True
        actions = np.float64(json.loads(body)["actions"])
        right = actions.shape == ask.actions.shape and np.abs(actions - ask.actions).max() <= TOLERANCE
        return GOOD, bool(right)

    def _connected(self) -> http.client.HTTPConnection:
        """Return a connection that its other end has not closed."""
        if self._connection is not None and self._connection.sock is not None:
            if not select.select([self._connection.sock], [], [], 0)[0]:
                return self._connection
            self.close()
        self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        self._connection.connect()
        return self._connection


def counted(kinds: Mapping[Any, int]) -> str:
    """Return what became of requests as text, the most frequent first."""
    return ", ".join(f"{kind} x {count}" for kind, count in Counter(kinds).most_common())
