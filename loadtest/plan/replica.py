"""One replica and its robots, simulated event by event: the gate's queue and batches as they are."""

import math
import random
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

# Only the extra `loadtest` brings it.
import simpy  # pyright: ignore[reportMissingImports]

from loadtest.judge import Verdict, judge, measured, percentile
from loadtest.plan.curve import Curve
from loadtest.samples import EXPIRED, OK, Beat, Recording, Sample
from loadtest.search import once
from loadtest.tiers import Tier
from server.gate.company import WAIT_S, Company

# As `loadtest.fleet` lets the robots' clocks differ.
DRIFT = 0.005
OVERLOADED = "503 overloaded"
# Simulated before anything counts [s].
WARM_UP_S = 2.0
# Runs with other phases that must agree on a number of robots.
MAJORITY = 2
# Longest simulation of a search [s].
LONGEST_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """What the robots of one replica saw."""

    robots: int
    verdict: Verdict
    missed: list[str]
    # Of right answers [ms]; NaN without any.
    p50_ms: float
    p95_ms: float
    # Control steps without an answer inside the deadline, as a share.
    misses: float
    # Mean time in the queue [ms], of requests that reached a worker.
    wait_ms: float
    # Share of the time in which a worker has a batch.
    busy: float


@dataclass(eq=False)
class Asked:
    """One request in the simulation."""

    done: Any
    queued_s: float = 0.0
    # Requests in its batch.
    batch: int = 0


class Replica:
    """The gate's queue and the workers behind it; see `server.gate.queue`."""

    def __init__(self, env: Any, curve: Curve, seed: int) -> None:
        self._env, self._curve, self.workers = env, curve, curve.workers
        self.outside_s = curve.request_ms / 1000
        self._random = random.Random(seed)
        self._waiting: deque[Asked] = deque()
        self._batches = 0
        self._company = Company()
        self._places = np.linspace(0.0, 1.0, len(curve.spread))
        # Time of all workers with a batch [s], and of all requests in the queue [s].
        self.busy_s = 0.0
        self.waits_s: list[float] = []

    def ask(self, asked: Asked) -> None:
        """Take a request, or refuse it where the queue is full."""
        asked.queued_s = self._env.now
        if len(self._waiting) >= self._curve.waiting and self._batches >= self.workers:
            asked.done.succeed(OVERLOADED)
            return
        self._waiting.append(asked)
        self._company.asked()
        self._hand_on()

    def drop(self, asked: Asked) -> None:
        """Forget a request that nobody waits for any more; one that is computed keeps its place."""
        if asked in self._waiting:
            self._waiting.remove(asked)

    def _hand_on(self) -> None:
        """Give every free worker what waits, but for a moment's company."""
        while self._waiting and self._batches < self.workers:
            if self._company.awaited(len(self._waiting)):
                return
            count = min(len(self._waiting), self._curve.largest)
            self._batches += 1
            self._env.process(self._compute([self._waiting.popleft() for _ in range(count)]))

    def _compute(self, batch: list[Asked]) -> Generator[Any, Any, None]:
        env, taken_s = self._env, self._taken_s(len(batch))
        self.waits_s += [env.now - asked.queued_s for asked in batch]
        self.busy_s += taken_s
        yield env.timeout(taken_s)
        self._batches -= 1
        begins = self._company.begin(len(batch), len(self._waiting), self._curve.largest)
        self._hand_on()
        for asked in batch:  # whose answers leave one after the other
            asked.batch = len(batch)
            if not asked.done.triggered:
                asked.done.succeed(OK)
            yield env.timeout(self._curve.answer_ms / 1000)
        if begins:
            yield env.timeout(WAIT_S)
            self._company.end()
            self._hand_on()

    def _taken_s(self, size: int) -> float:
        relative = float(np.interp(self._random.random(), self._places, self._curve.spread))
        return self._curve.of(size) * relative / 1000


@dataclass(frozen=True)
class Robots:
    """Who asks one replica."""

    count: int
    # Rate at which each asks [Hz].
    control_hz: float
    # Share of them whose control steps begin at one moment, on one clock.
    in_phase: float = 0.0


def simulate(curve: Curve, tier: Tier, robots: Robots, *, seed: int = 0) -> Outcome:
    """Let robots ask one replica for the tier's duration, and judge it as the load test does."""
    env, random_ = simpy.Environment(), random.Random(seed)
    replica = Replica(env, curve, seed)
    samples: list[Sample] = []
    end_s = WARM_UP_S + tier.duration_s
    together = round(robots.in_phase * robots.count)
    for index in range(robots.count):
        first_s, clock = (
            (0.0, 1.0) if index < together else (random_.random(), 1 + random_.uniform(-DRIFT, DRIFT))
        )
        period_s = clock / robots.control_hz
        env.process(_Robot(replica, tier, period_s, samples).run(env, first_s * period_s))
    env.run(end_s + tier.deadline_ms / 1000)
    return _judged(samples, tier, robots.count, replica, end_s)


class _Robot:
    """One robot: asks at every control step; one that comes while it waits for an answer is skipped."""

    def __init__(self, replica: Replica, tier: Tier, period_s: float, samples: list[Sample]) -> None:
        self._replica, self._tier, self._period_s, self._samples = replica, tier, period_s, samples

    def run(self, env: Any, due_s: float) -> Generator[Any, Any, None]:
        """Take control steps from `due_s` on."""
        skipped = 0
        while True:
            yield env.timeout(max(0.0, due_s - env.now))
            yield from self._step(env, skipped)
            skipped = math.floor((env.now - due_s) / self._period_s)
            due_s += (skipped + 1) * self._period_s

    def _step(self, env: Any, skipped: int) -> Generator[Any, Any, None]:
        outside_s, sent_s = self._replica.outside_s, env.now
        yield env.timeout(outside_s / 2)
        asked = Asked(env.event())
        self._replica.ask(asked)
        late = env.timeout(max(0.0, sent_s + self._tier.deadline_ms / 1000 - env.now))
        yield asked.done | late
        outcome = asked.done.value if asked.done.triggered else EXPIRED
        if outcome == EXPIRED:
            self._replica.drop(asked)
        yield env.timeout(outside_s / 2)
        latency_ms = 1000 * (env.now - sent_s)
        self._samples.append(Sample("robot", sent_s, 0.0, latency_ms, outcome, skipped, asked.batch))


def _judged(samples: list[Sample], tier: Tier, robots: int, replica: Replica, end_s: float) -> Outcome:
    """Judge what was simulated by the load test's own rules."""
    recording = Recording(0.0, sorted(samples, key=lambda s: s.due_s), [Beat(WARM_UP_S + 0.1, 0.0)])
    tier = msgspec.structs.replace(tier, warm_up_s=WARM_UP_S)
    judgement = judge(recording, tier, [0.0])
    kept = measured(recording, tier)
    right = [s.latency_ms for s in kept if s.outcome == OK]
    steps = sum(1 + s.skipped for s in kept)
    good = sum(s.outcome == OK and s.latency_ms <= tier.deadline_ms for s in kept)
    nan = float("nan")
    return Outcome(
        robots=robots,
        verdict=judgement.verdict,
        missed=judgement.missed,
        p50_ms=percentile(right, 50) if right else nan,
        p95_ms=percentile(right, 95) if right else nan,
        misses=1 - good / steps if steps else 1.0,
        wait_ms=1000 * sum(replica.waits_s) / max(1, len(replica.waits_s)),
        busy=min(1.0, replica.busy_s / (end_s * replica.workers)),
    )


def carried(curve: Curve, tier: Tier, *, in_phase: float = 0.0, limit: int = 100_000) -> int:
    """Return the most robots of one replica that keep the tier, to a step of 5 %; 0: not one does."""
    short = msgspec.structs.replace(tier, duration_s=min(tier.duration_s, LONGEST_S))

    def kept(robots: int) -> bool:
        asking = Robots(robots, tier.control_hz, in_phase)
        runs: list[bool] = []
        while max(sum(runs), len(runs) - sum(runs)) < MAJORITY:
            runs.append(simulate(curve, short, asking, seed=len(runs)).verdict == "kept")
        return sum(runs) >= MAJORITY

    start = max(1, int(curve.rate_hz(curve.largest) / tier.control_hz / 2))
    return once(kept, start, limit)
