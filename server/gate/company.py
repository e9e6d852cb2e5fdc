"""Whether a free worker waits for company: those that it has just answered may be about to ask again."""

# How long they are waited for [s].
WAIT_S = 0.002
# They are waited for where at least this share of them usually comes in that time.
USUAL = 0.5
# How many batches back what is usual reaches.
BATCHES = 16


class Company:
    """One model's requests that come at once after answers: of players that ask as soon as they can.

    Without a wait two such players take turns in batches of one. Robots that ask at a rate of their own do
    not come back at once, and are not waited for.
    """

    def __init__(self) -> None:
        # Share of the answered that came back in time, over the last batches.
        self._usual = 1.0
        # Of the last batch: how many were answered, and how many have asked while it was waited for them.
        self._answered = self._came = 0
        # Whether it is waited, and for how many.
        self._waits, self._wanted = False, 0

    def asked(self) -> None:
        """Note that a request came."""
        self._came += self._waits

    def awaited(self, waiting: int) -> bool:
        """Return whether a worker is kept free, with so many waiting."""
        return self._waits and waiting < self._wanted

    def begin(self, answered: int, waiting: int, largest: int) -> bool:
        """Wait for so many that are about to be answered, while others wait for a batch of at most `largest`.

        Returns:
            whether a wait begins; False: one is on, which a second batch does not prolong
        """
        if self._waits:
            self._answered += answered
            return False
        if self._answered:
            self._usual += (min(1.0, self._came / self._answered) - self._usual) / BATCHES
        self._answered, self._came, self._waits = answered, 0, True
        together = min(answered + waiting, largest)
        self._wanted = together if together > 1 and self._usual >= USUAL else 0
        return True

    def end(self) -> None:
        """End the wait."""
        self._waits = False
