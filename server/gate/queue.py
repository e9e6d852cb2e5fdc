"""Who is computed next: a short queue before each model, shared fairly by its clients."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from server.gate.counters import Counters
from server.gate.refusal import OVERLOADED, Answer, Refusal
from server.gate.torchserve import Upstream

Done = Callable[[Answer | Refusal | None], None]


@dataclass(frozen=True)
class Room:
    """How many requests of one model the server takes."""

    # Within TorchServe, which computes whatever it has been given: nothing can be taken back.
    computing: int
    # Before it, where a request can still be dropped.
    waiting: int

    @classmethod
    def of(cls, batch: int, workers: int, queue: int) -> "Room":
        """Return the room for a model that TorchServe serves.

        Args:
            batch: its largest batch
            workers: how many there are
            queue: TorchServe's own queue, whose length all that wait have together
        """
        computing = min(2 * batch * workers, batch * workers + queue)
        return cls(computing, max(1, queue + batch * workers - computing))


@dataclass(eq=False)
class Ticket:
    """A request in the queue, or within TorchServe. Without `done` nobody waits for its answer."""

    queue: "FairQueue"
    client: str
    request: bytes
    done: Done | None
    # When it came, on the loop's clock [s].
    since_s: float
    waits: bool = True

    def cancel(self) -> None:
        """Nobody waits for the answer any more: one that still waits is never computed."""
        if self.done is not None:
            self.done = None
            self.queue.abandon(self)

    def finish(self, answer: Answer | None) -> None:
        """Hand TorchServe's answer on, and let the next one in."""
        done, self.done = self.done, None
        self.queue.leave()
        if done is not None:
            done(answer)


class FairQueue:
    """The requests of one model. TorchServe gets no more than two batches a worker at a time.

    Clients take turns, so that one with a hundred requests delays another's by one batch. Where the queue is
    full, the client with the most requests in it is refused.
    """

    def __init__(self, upstream: Upstream, room: Room, counters: Counters, time: Callable[[], float]) -> None:
        self._upstream = upstream
        self._room = room
        self._counters = counters
        self._time = time
        # By client, in the order of their turns; none is empty.
        self._lines: dict[str, deque[Ticket]] = {}
        self.waiting = self.computing = 0

    def ask(self, client: str, request: bytes, done: Done) -> Ticket | None:
        """Hand a request on in its turn; `done` gets the answer, a refusal, or None when there is none.

        Returns:
            the ticket to cancel it by; None: it is refused already
        """
        if self.waiting >= self._room.waiting and self.computing >= self._room.computing:
            longest = max(self._lines.values(), key=len)
            if len(longest) <= len(self._lines.get(client, ())) + 1:
                done(OVERLOADED)
                return None
            self._refuse(longest[-1])
        ticket = Ticket(self, client, request, done, self._time())
        self._lines.setdefault(client, deque()).append(ticket)
        self.waiting += 1
        self._hand_on()
        return ticket

    def abandon(self, ticket: Ticket) -> None:
        """Drop a request that waits; one within TorchServe keeps its place until that is done with it."""
        self._counters.abandoned["waiting" if ticket.waits else "computing"] += 1
        if ticket.waits:
            self._remove(ticket)

    def leave(self) -> None:
        """TorchServe is done with one."""
        self.computing -= 1
        self._hand_on()

    def _refuse(self, ticket: Ticket) -> None:
        done, ticket.done = ticket.done, None
        self._remove(ticket)
        if done is not None:
            done(OVERLOADED)

    def _remove(self, ticket: Ticket) -> None:
        line = self._lines[ticket.client]
        line.remove(ticket)
        self.waiting -= 1
        if not line:
            del self._lines[ticket.client]

    def _hand_on(self) -> None:
        while self._lines and self.computing < self._room.computing:
            client = next(iter(self._lines))
            line = self._lines.pop(client)
            ticket = line.popleft()
            if line:
                self._lines[client] = line  # behind the others
            ticket.waits = False
            self.waiting -= 1
            self.computing += 1
            self._counters.waits.add(self._time() - ticket.since_s)
            self._upstream.ask(ticket.request, ticket.finish)
