"""Each fault of the table: what is done to a running set-up, while robots ask it."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.faults import archives
from bench.faults.client_faults import dribble, idle, leave
from bench.faults.host_faults import fill_disk, jump, no_mounting, with_clock, with_small_disk
from bench.faults.robots import Robots
from bench.faults.server_faults import (
    damaged_archive,
    drain,
    hang,
    kill_front_end,
    kill_gate,
    kill_worker,
    kill_worker_collecting,
    kill_worker_in_batch,
    lose_replica,
    replaced_archive,
    tell,
)
from bench.faults.setup import WAYS, Places, SetUp, Way, serving


@dataclass(frozen=True)
class Fault:
    """One line of the table."""

    name: str
    # Does it, and returns what else is to be said; robots ask meanwhile.
    provoke: Callable[[SetUp, Robots], str | None]
    ways: tuple[Way, ...] = WAYS
    # The servers that it needs; those that most need are shared.
    serving: Callable[[Way, Places], contextlib.AbstractContextManager[SetUp]] | None = None
    # Why it can't be provoked on this host.
    skipped: Callable[[], str | None] = lambda: None


FAULTS = (
    Fault("worker killed, idle", kill_worker),
    Fault("worker killed in mid-batch", kill_worker_in_batch),
    Fault("worker killed while it reads a batch", kill_worker_collecting),
    Fault("worker hung for 10 s", partial(hang, hung_s=10)),
    Fault("worker hung for 45 s", partial(hang, hung_s=45)),
    Fault("artifact raises on one row", partial(tell, what="row")),
    Fault("artifact always raises, for 3 s", partial(tell, what="always")),
    Fault("out of memory in `act`, for 3 s", partial(tell, what="memory")),
    *(Fault(f"archive {damage}", partial(damaged_archive, damage=damage)) for damage in archives.DAMAGES),
    Fault("archive replaced while served, worker killed", replaced_archive),
    Fault("disk full", fill_disk, serving=with_small_disk, skipped=no_mounting),
    Fault("front end (Java) killed", kill_front_end),
    Fault("gate killed", kill_gate),
    Fault("two replicas, one lost", lose_replica, ("deployed",), partial(serving, replicas=2)),
    Fault("clock jumps", jump, serving=with_clock),
    Fault("clients that hang up", leave),
    Fault("slow clients", dribble),
    Fault("2,000 idle connections", idle),
    Fault("drain with keep-alive clients", drain),
)
