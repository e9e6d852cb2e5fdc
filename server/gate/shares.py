"""How long a batch may be, so that what one client has waiting does not delay the others."""

# Where several clients ask, a batch is to take so long, but for one request of each [s].
SHARED_BATCH_S = 0.02
# A client counts for so long after it has asked [s].
COUNTS_S = 1.0


class Shares:
    """The length of one model's batches, learnt from what they take."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        # Requests of a batch that several clients share.
        self._shared = largest
        # When each client asked last [s].
        self._asked_s: dict[str, float] = {}

    def asked(self, client: str, now_s: float) -> None:
        """Note that a client asks."""
        self._asked_s[client] = now_s

    def most(self, waiting: int, now_s: float) -> int:
        """Return how many requests the next batch may have: one of each client that waits, in any case.

        Args:
            waiting: clients with a request in the queue
            now_s: on the clock of `asked` [s]
        """
        since_s = now_s - COUNTS_S
        self._asked_s = {client: asked_s for client, asked_s in self._asked_s.items() if asked_s > since_s}
        alone = len(self._asked_s) < 2
        return self._largest if alone else min(self._largest, max(self._shared, waiting))

    def learn(self, count: int, took_s: float) -> None:
        """Adapt to what a batch of `count` requests has taken [s]."""
        if took_s > SHARED_BATCH_S:
            self._shared = max(1, int(count * SHARED_BATCH_S / took_s))
        elif count >= self._shared:
            self._shared = min(self._largest, self._shared + 1)
