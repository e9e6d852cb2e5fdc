"""What a load generator writes down, as it was: one sample a request, one beat a second."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

OK = "ok"
# The server itself refused to compute what would have come too late.
EXPIRED = "504 deadline_expired"
# Classes of a request without an answer.
REFUSED = "connection refused"
CLOSED = "connection closed"
TIMEOUT = "no answer in time"
# An answer that breaks the contract: `wrong answer: shape`.
WRONG = "wrong answer: "


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One request of one robot."""

    # Kind of client: robot, mixed, burst, eager or adversary.
    user: str
    # When the control step was due [s since the epoch].
    due_s: float
    # How much later the request was sent [ms]: the load generator's own fault.
    lag_ms: float
    # From sending to the whole answer [ms].
    latency_ms: float
    # `OK`, or the class of the error.
    outcome: str
    # Control steps that passed while the robot waited for its former answer.
    skipped: int = 0
    # Requests that shared the forward pass; 0 where the answer does not say.
    batch: int = 0
    # What was wrong.
    detail: str = ""

    @property
    def end_s(self) -> float:
        """When the answer was there [s since the epoch]."""
        return self.due_s + (self.lag_ms + self.latency_ms) / 1000

    @property
    def unserved(self) -> bool:
        """Whether the server gave no answer, or said that it can't."""
        return self.outcome in (REFUSED, CLOSED, TIMEOUT) or (
            self.outcome[:1] == "5" and self.outcome != EXPIRED
        )


class Beat(msgspec.Struct, frozen=True, array_like=True):
    """One second in the life of a load generator's process."""

    # [s since the epoch]
    time_s: float
    # CPU time over wall time, of one core.
    cpu: float


class Recording(msgspec.Struct, frozen=True):
    """What the processes of one load generator wrote down."""

    # When all robots ran [s since the epoch].
    ready_s: float
    samples: list[Sample]
    beats: list[Beat]


def write(recording: Recording, path: Path) -> None:
    """Write one process's recording, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.msgpack.encode(recording))
    partial.replace(path)


def read(paths: Iterable[Path]) -> Recording:
    """Read the recordings of all processes as one.

    Raises:
        ValueError: there is none.
    """
    parts = [msgspec.msgpack.decode(path.read_bytes(), type=Recording) for path in paths]
    if not parts:
        raise ValueError("no load generator wrote a recording")
    return Recording(
        ready_s=max(part.ready_s for part in parts),
        samples=sorted(
            (sample for part in parts for sample in part.samples), key=lambda sample: sample.due_s
        ),
        beats=[beat for part in parts for beat in part.beats],
    )
