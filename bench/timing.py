"""How long a step takes: the one loop behind every figure that is taken in a process."""

import time
from collections.abc import Callable


def taken_s(
    step: Callable[[], object],
    seconds: float = 0.0,
    *,
    least: int,
    warm_up: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return how long each call of a step that waits for its own result takes [s].

    Args:
        step: what is timed
        seconds: it is called again and again for so long [s]
        least: but so many times at least
        warm_up: calls before, which do not count
        clock: what time is read from; `time.process_time` leaves out what other programs take
    """
    for _ in range(warm_up):
        step()
    taken, begin = list[float](), clock()
    while len(taken) < least or clock() - begin < seconds:
        before = clock()
        step()
        taken.append(clock() - before)
    return taken
