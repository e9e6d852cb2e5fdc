"""Decoding that would delay others, beside the batches: in a thread that yields to all the others."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from vla_runtime.errors import Forgotten, Later, Overloaded, RequestError
from vla_runtime.staging import Inputs

# Requests at once, and as many that are done and were not fetched.
MOST = 8
NICE = 19


class Apart:
    """Prepares some requests one after the other, while batches go on; each is asked for until it is done."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "apart", initializer=_yield_to_others)
        # By ticket, in the order they came.
        self._taken: dict[int, Future[Inputs | RequestError]] = {}
        # What each of them costs [nominal ms].
        self._costs_ms: dict[int, float] = {}

    def inputs(
        self, ticket: int, cost_ms: float, prepare: Callable[[], Inputs | RequestError]
    ) -> Inputs | RequestError:
        """Return what `prepare` made of a request.

        Args:
            ticket: of the request, the same each time that it is asked for
            cost_ms: what it will take [nominal ms]
            prepare: what is to be done, once

        Raises:
            Later: it is not done yet.
            Overloaded: there are too many already.
        """
        if ticket not in self._taken:
            self._make_room()
            self._taken[ticket] = self._thread.submit(prepare)
            self._costs_ms[ticket] = cost_ms
        return self.fetched(ticket)

    def fetched(self, ticket: int) -> Inputs | RequestError:
        """Return what was made of a request that was taken before.

        Raises:
            Later: it is not done yet.
            Forgotten: it was not taken here, or nobody came for it in time.
        """
        future = self._taken.get(ticket)
        if future is None:
            raise Forgotten(None, "nothing is known of its ticket")
        if not future.done():
            raise Later(None, "its pictures are being decoded", self._left_ms(ticket))
        self._forget(ticket)
        return future.result()

    def _left_ms(self, ticket: int) -> float:
        """Return what it and those before it still cost [nominal ms]."""
        taken = list(self._taken)
        before = taken[: taken.index(ticket) + 1]
        return sum(self._costs_ms[each] for each in before if not self._taken[each].done())

    def _forget(self, ticket: int) -> None:
        del self._taken[ticket], self._costs_ms[ticket]

    def _make_room(self) -> None:
        """Forget the oldest that nobody came for."""
        done = [ticket for ticket, future in self._taken.items() if future.done()]
        if len(self._taken) - len(done) >= MOST:
            raise Overloaded(None, "large pictures of others come first: send smaller ones, or try again")
        for ticket in done[: max(0, len(done) - MOST + 1)]:
            self._forget(ticket)


def _yield_to_others() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
