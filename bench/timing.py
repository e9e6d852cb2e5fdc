"""How long a step takes: the one loop behind every figure that is taken in a process."""

import time
from collections.abc import Callable


def taken_s(step: Callable[[], object], seconds: float = 0.0, *, least: int, warm_up: int = 0) -> list[float]:
    """Return how long each call of a step that waits for its own result takes [s].

    Args:
        step: what is timed
        seconds: it is called again and again for so long [s]
        least: but so many times at least
        warm_up: calls before, which do not count
    """
    for _ in range(warm_up):
        step()
    taken, begin = list[float](), time.perf_counter()
    while len(taken) < least or time.perf_counter() - begin < seconds:
        before = time.perf_counter()
        step()
        taken.append(time.perf_counter() - before)
    return taken
