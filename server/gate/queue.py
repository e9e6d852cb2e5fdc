"""Who is computed next: a short queue before each model, shared fairly by its clients, emptied in batches."""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.gate import company
from server.gate.batch import ANEW, LATER, alone, apart, together
from server.gate.company import Company
from server.gate.counters import Counters
from server.gate.hand_over import HandOver
from server.gate.refusal import OVERLOADED, Answer, Refusal
from server.gate.routes import Prediction
from server.gate.shares import Shares
from server.gate.torchserve import Upstream

logger = logging.getLogger(__name__)

Done = Callable[[Answer | Refusal | None], None]

# When one that was not ready yet is asked for again, the longest pause, and how much longer each one is [s];
# and the longest where the worker says how long it takes.
AGAIN_S, SELDOM_S, LONGER, SAID_S = 0.02, 0.1, 1.5, 1.0
# Paths whose requests are asked for in batches.
BATCHED = "/predictions/"
NUMBERS = itertools.count(1)
# Most that one batch has; the largest request is one of its own [bytes].
LARGEST_BATCH = 4 << 20


@dataclass(frozen=True)
class Room:
    """How many requests of one model the server takes."""

    # Batches within TorchServe, which computes whatever it has been given: nothing can be taken back.
    batches: int
    # Requests in one of them.
    largest: int
    # Requests before it, where one can still be dropped.
    waiting: int

    @classmethod
    def of(cls, batch: int, workers: int, queue: int, joined: int) -> "Room":
        """Return the room for a model that TorchServe serves.

        Args:
            batch: the largest batch that TorchServe makes
            workers: how many there are
            queue: TorchServe's own queue, whose length all that wait have together
            joined: most requests that a worker takes in one body; 0: it reads none such, and TorchServe makes
                the batches
        """
        if joined:
            return cls(workers, joined, queue)
        batches = min(2 * batch * workers, batch * workers + queue)
        return cls(batches, 1, max(1, queue + batch * workers - batches))


@dataclass(eq=False)
class Ticket:
    """A request in the queue, or within TorchServe. Without `done` nobody waits for its answer."""

    queue: "FairQueue"
    client: str
    asked: Prediction
    done: Done | None
    # When it came, on the loop's clock [s].
    since_s: float
    # Of all requests since the gate was started.
    number: int
    waits: bool = True
    # Whether a worker has its body already, and when it is asked for again [s].
    known: bool = False
    pause_s: float = field(default_factory=lambda: AGAIN_S)

    @property
    def size(self) -> int:
        """What a worker has to be sent [bytes]."""
        return 0 if self.known else len(self.asked.body)

    def cancel(self) -> None:
        """Nobody waits for the answer any more: one that still waits is never computed."""
        if self.done is not None:
            self.done = None
            self.queue.abandon(self)

    def finish(self, answer: Answer | Refusal | None) -> None:
        """Hand an answer on to who waits for it; whatever fails in that is no matter of its batch."""
        done, self.done = self.done, None
        if done is not None:
            try:
                done(answer)
            except Exception:
                logger.exception("an answer could not be handed on")


class FairQueue:
    """The requests of one model. A worker gets one batch at a time, of all that wait when it is free.

    Clients take turns, so that one with a hundred requests delays another's by one batch, and that is a short
    one. Where the queue is full, the client with the most requests in it is refused.
    """

    def __init__(
        self,
        upstream: Upstream,
        room: Room,
        counters: Counters,
        loop: asyncio.AbstractEventLoop,
        shared_memory: Path | None = None,
    ) -> None:
        self._upstream = upstream
        self._hand_over = HandOver(upstream, shared_memory)
        self._room = room
        self._counters = counters
        self._loop = loop
        # By client, in the order of their turns; none is empty.
        self._lines: dict[str, deque[Ticket]] = {}
        self.waiting = self.computing = 0
        # Batches within TorchServe.
        self._batches = 0
        self._shares = Shares(room.largest)
        self._company = Company()

    def ask(self, client: str, asked: Prediction, done: Done) -> Ticket | None:
        """Hand a request on in its turn; `done` gets the answer, a refusal, or None when there is none.

        Returns:
            the ticket to cancel it by; None: it is refused already
        """
        if self.waiting >= self._room.waiting and self._batches >= self._room.batches:
            longest = max(self._lines.values(), key=len)
            if len(longest) <= len(self._lines.get(client, ())) + 1:
                done(OVERLOADED)
                return None
            self._refuse(longest[-1])
        ticket = Ticket(self, client, asked, done, self._loop.time(), next(NUMBERS))
        self._shares.asked(client, ticket.since_s)
        self._company.asked()
        self._lines.setdefault(client, deque()).append(ticket)
        self.waiting += 1
        self._hand_on()
        return ticket

    def abandon(self, ticket: Ticket) -> None:
        """Drop a request that waits; one within TorchServe keeps its place until that is done with it."""
        self._counters.abandoned["waiting" if ticket.waits else "computing"] += 1
        if ticket.waits:
            self._remove(ticket)

    def _refuse(self, ticket: Ticket) -> None:
        self._remove(ticket)
        ticket.finish(OVERLOADED)

    def _remove(self, ticket: Ticket) -> None:
        line = self._lines[ticket.client]
        line.remove(ticket)
        self.waiting -= 1
        if not line:
            del self._lines[ticket.client]

    def _hand_on(self) -> None:
        while self._lines and self._batches < self._room.batches:
            if self._company.awaited(self.waiting):
                return
            self._send(self._next())

    def _again(self, ticket: Ticket) -> None:
        """Ask for one that was not ready yet, before the others of its client."""
        if ticket.done is not None:
            ticket.waits, ticket.since_s = True, self._loop.time()
            self._lines.setdefault(ticket.client, deque()).appendleft(ticket)
            self.waiting += 1
            self._hand_on()

    def _next(self) -> list[Ticket]:
        """Take the next batch: clients in turn, requests of one path, as much as one body may have."""
        most = self._shares.most(len(self._lines), self._loop.time())
        batch, size = [self._take()], 0
        path = batch[0].asked.path
        while self._lines and len(batch) < most and path.startswith(BATCHED):
            size += batch[-1].size
            following = next(iter(self._lines.values()))[0]
            if following.asked.path != path or size + following.size > LARGEST_BATCH:
                break
            batch.append(self._take())
        return batch

    def _take(self) -> Ticket:
        client = next(iter(self._lines))
        line = self._lines.pop(client)
        ticket = line.popleft()
        if line:
            self._lines[client] = line  # behind the others
        ticket.waits = False
        self.waiting -= 1
        self._counters.waits.add(self._loop.time() - ticket.since_s)
        return ticket

    def _send(self, batch: Sequence[Ticket]) -> None:
        self._batches += 1
        self.computing += len(batch)
        first = batch[0].asked
        joined = self._room.largest > 1 and first.path.startswith(BATCHED)
        began_s = self._loop.time()

        def done(answer: Answer | None) -> None:
            self._finish(batch, answer, began_s)

        if joined:
            known = {ticket.number for ticket in batch if ticket.known}
            body = together({ticket.number: ticket.asked for ticket in batch}, known)
            self._hand_over.ask(first.path, body, done)
        else:
            self._upstream.ask(alone(first), done)

    def _finish(self, batch: Sequence[Ticket], answer: Answer | None, began_s: float) -> None:
        """Let the next ones in, and hand TorchServe's answers on."""
        took_s = self._loop.time() - began_s
        self._shares.learn(len(batch), took_s)
        self._counters.batches.add(len(batch), took_s)
        self._batches -= 1
        self.computing -= len(batch)
        answers = apart(answer, len(batch))
        later = [own is not None and own.status in (LATER, ANEW) for own in answers]
        begins = self._company.begin(later.count(False), self.waiting, self._room.largest)
        self._hand_on()
        for ticket, own, not_yet in zip(batch, answers, later, strict=True):
            if own is not None and not_yet:
                ticket.known = own.status == LATER
                said_s = int(own.body) / 1000 if own.body.isdigit() else 0.0
                self._loop.call_later(max(ticket.pause_s, min(said_s, SAID_S)), self._again, ticket)
                ticket.pause_s = min(LONGER * ticket.pause_s, SELDOM_S)
            else:
                ticket.finish(own)
        if begins:
            self._loop.call_later(company.WAIT_S, self._wait_no_more)

    def _wait_no_more(self) -> None:
        # Not by the clock: a loop's timer may come a little before its time, and no other would follow.
        self._company.end()
        self._hand_on()
