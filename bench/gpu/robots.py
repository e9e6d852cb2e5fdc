"""How many robots at 10 Hz one process serves, decoding included."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import numpy as np
import torch

from bench.gpu.part import Findings, Run
from bench.policies import BUCKETS, in_process, of_architecture, of_size, robot_requests
from export.source import Source
from loadtest.document import Table
from loadtest.search import once
from vla_runtime.observation import Row
from vla_runtime.policy import Policy
from vla_runtime.spec import Precision

# The tier: the latency's 95th percentile stays under it [s], and at most 1 % of answers come after a period.
P95_S, MOST_LATE = 0.05, 0.01
PERIOD_S = 0.1
FIRST, MOST_ROBOTS = 8, 4096
PLANS: tuple[tuple[str, Callable[[], Source], Precision], ...] = (
    ("grounded", partial(of_architecture, "grounded"), "float32"),
    ("ViT-B/32", partial(of_size, "ViT-B/32"), "bfloat16"),
    ("ViT-L/14", partial(of_size, "ViT-L/14"), "bfloat16"),
)


class Tried(msgspec.Struct, frozen=True):
    """A number of robots, and whether the tier was kept."""

    robots: int
    p95_ms: float
    kept: bool


def robots(run: Run) -> Findings:
    """Find the most robots for each policy, as far as the time goes; on the CPU for the default one alone."""
    found: dict[str, list[Tried]] = {}
    for name, make, precision in PLANS if run.on_gpu else PLANS[:1]:
        if run.spent:
            break
        with torch.device(run.device):
            source = make()
        policy = in_process(source, run.device, precision)
        policy.warm_up()
        found[name] = search(policy)
        run.say(f"{name} {precision}: {most(found[name])} robots at 10 Hz")
    says = (
        "One process, 640 x 480 JPEG files in, safe actions out, every robot asks each 100 ms: the most with "
        "a p95 under 50 ms and at most 1 % of answers later than 100 ms. Over HTTP: `make loadtest "
        "ARGS=--find-robots`."
    )
    rows = [(name, str(most(tried))) for name, tried in found.items()]
    return Findings.of([says, Table(("policy", "robots at 10 Hz"), rows)], found, ok=True)


def most(tried: Sequence[Tried]) -> int:
    """Return the largest number that kept the tier."""
    return max((one.robots for one in tried if one.kept), default=0)


def search(policy: Policy) -> list[Tried]:
    """Search as the load test does; return every number of robots that was tried."""
    requests, tried = robot_requests(64), list[Tried]()

    def kept(count: int) -> bool:
        latencies_s = _played(policy, requests, count)
        p95_s, late = np.percentile(latencies_s, 95), np.mean(latencies_s > PERIOD_S)
        tried.append(Tried(count, 1000 * float(p95_s), bool(p95_s < P95_S and late <= MOST_LATE)))
        return tried[-1].kept

    once(kept, FIRST, MOST_ROBOTS)
    return tried


def _played(policy: Policy, requests: Sequence[Row], count: int, seconds: float = 2.5) -> np.ndarray:
    """Play robots in random phases; batches form as a worker forms them. Returns latencies [s]."""
    phases = np.sort(np.random.default_rng(count).uniform(0, PERIOD_S, count))
    steps = np.arange(int(seconds / PERIOD_S)) * PERIOD_S
    due: deque[float] = deque(np.add.outer(steps, phases).ravel().tolist())
    latencies_s: list[float] = []
    began = time.perf_counter()
    while due:
        now = time.perf_counter() - began
        if due[0] > now:
            time.sleep(min(0.001, due[0] - now))
            continue
        batch: list[float] = []
        while due and due[0] <= now and len(batch) < BUCKETS[-1]:
            batch.append(due.popleft())
        sent = len(latencies_s)
        policy.infer([requests[(sent + index) % len(requests)] for index in range(len(batch))])
        done = time.perf_counter() - began
        latencies_s += [done - at for at in batch]
        if done - batch[0] > 10 * PERIOD_S:  # hopelessly behind
            break
    return np.array(latencies_s)
