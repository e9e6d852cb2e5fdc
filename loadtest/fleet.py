"""What all clients of one load generator's process share: requests to send, the contract, the recording."""

import gc
import itertools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent

from loadtest import corpus
from loadtest.access import Access
from loadtest.answers import Contract, WrongAnswer, read_error
from loadtest.body import form
from loadtest.known import Known, Request
from loadtest.samples import CLOSED, OK, REFUSED, TIMEOUT, WRONG, Beat, Recording, Sample, write
from vla_client import ActionChunk

# Different pictures of one kind of client that a process prepares.
PICTURES = 256
# Largest share by which a robot's clock differs from the control rate, so that no two robots stay in phase.
DRIFT = 0.005
# Share of the requests whose right answer is known.
KNOWN_SHARE = 0.2


class Fleet:
    """One process's clients."""

    def __init__(
        self,
        contract: Contract,
        access: Access,
        known: Known | None,
        *,
        control_hz: float,
        deadline_ms: float,
        seed: int,
    ) -> None:
        """Prepare what is to be sent, so that the run itself spends nothing on it.

        Args:
            contract: what a right answer looks like
            access: what lets requests in
            known: requests whose right answer is known
            control_hz: rate at which each robot asks [Hz]
            deadline_ms: oldest age at which an answer is worth anything [ms]
            seed: of pictures, states, phases and clocks
        """
        self.contract = contract
        self.access = access
        self.known = known
        self.control_hz = control_hz
        self.deadline_ms = deadline_ms
        self.random = random.Random(seed)
        self.ready_s = 0.0
        self._seed = seed
        self._numbers = itertools.count(seed * 10**9)
        self._samples: list[Sample] = []
        self._beats: list[Beat] = []
        self._pools: dict[tuple[tuple[int, int], ...], list[bytes]] = {}

    def pictures(self, sizes: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
        """Return one client's endless pictures of some sizes [pixels], never the same twice in a row."""
        if sizes not in self._pools:
            self._pools[sizes] = corpus.pictures(PICTURES, sizes, self._seed)
            gc.freeze()
        pool = self._pools[sizes]
        start = self.random.randrange(len(pool))
        return (corpus.numbered(pool[i % len(pool)], next(self._numbers)) for i in itertools.count(start))

    def form(self, pictures: Iterator[bytes], command: str) -> bytes:
        """Return the next request's body: a picture a camera, and a state inside the policy's bounds."""
        contract = self.contract
        values: dict[str, Any] = {"deadline_ms": self.deadline_ms}
        if contract.takes_command:
            values["command"] = command
        values |= contract.state_values(self.random.random)
        return form({name: next(pictures) for name in contract.image_fields}, values)

    def known_request(self) -> Request | None:
        """Return, now and then, a request whose right answer is known."""
        if self.known is None or not self.known.requests or self.random.random() >= KNOWN_SHARE:
            return None
        return self.random.choice(self.known.requests)

    def known_form(self, request: Request) -> bytes:
        """Return the body of a known request, unlike any other body but for its pixels."""
        images = {
            name: corpus.numbered(data, next(self._numbers)) if data.startswith(b"\xff\xd8") else data
            for name, data in request.images.items()
        }
        return form(images, {**request.values, "deadline_ms": self.deadline_ms})

    def record(self, sample: Sample) -> None:
        """Keep one request."""
        self._samples.append(sample)

    def listen(self) -> None:
        """Note every second how much CPU this process takes; never returns."""
        while True:
            started, cpu_s = time.perf_counter(), time.process_time()
            gevent.sleep(1)
            cpu = (time.process_time() - cpu_s) / (time.perf_counter() - started)
            self._beats.append(Beat(time.time(), cpu))

    def save(self, path: Path) -> None:
        """Write the recording."""
        write(Recording(self.ready_s, self._samples, self._beats), path)


def judge_answer(
    contract: Contract, status: int, body: bytes, right: Callable[[ActionChunk], None] | None = None
) -> tuple[str, str, int]:
    """Return the outcome of an answer, what was wrong with it, and its batch's size.

    `right` raises WrongAnswer where it knows the right answer, and this is another.
    """
    if status != 200:
        code, message = read_error(body)
        return f"{status} {code}", message, 0
    try:
        chunk = contract.check(body)
        if right:
            right(chunk)
    except WrongAnswer as error:
        return WRONG + error.kind, str(error), 0
    return OK, "", int(chunk.timing_ms.get("batch_size", 0))


def connection_class(error: BaseException | None) -> str:
    """Return the class of a request that got no answer."""
    if isinstance(error, ConnectionRefusedError):
        return REFUSED
    if isinstance(error, TimeoutError):  # also socket.timeout
        return TIMEOUT
    return CLOSED
