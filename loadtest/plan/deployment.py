"""A whole fleet on replicas: how many it takes, and what a lost host and a growing fleet do to it.

Replicas do not know each other, and the proxy shares requests out evenly. So one replica is simulated event
by event at several loads, and the fleet second by second on what that gave.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from loadtest.plan.curve import Curve
from loadtest.plan.replica import Robots, simulate
from loadtest.tiers import Tier

# Robots of one replica at which it is simulated, as shares of those that it carries.
LOADS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
# Of each such simulation [s].
SIMULATED_S = 10.0
# An episode's length, and when its event comes [s].
EPISODE_S, EVENT_S = 480, 60


@dataclass(frozen=True)
class Autoscaler:
    """The HorizontalPodAutoscaler of docker/kubernetes/overlays/autoscaling."""

    # Mean time in the queue at which it neither adds nor removes replicas [s].
    target_wait_s: float = 0.02
    # How often it decides [s], and over what time the metric is the mean [s].
    period_s: float = 15.0
    window_s: float = 60.0
    # It may double the replicas once in this time [s].
    doubling_s: float = 30.0
    # Within this of its target it does nothing, as a share.
    tolerance: float = 0.1


@dataclass(frozen=True)
class Site:
    """Where the replicas run, and what goes wrong there."""

    replicas_per_host: int = 1
    gpus_per_replica: int = 0
    # Hosts whose loss the tier is to survive.
    spare_hosts: int = 1
    # Of one replica, in any currency [1/h].
    replica_cost: float = 1.0
    # From a host's loss until nothing is sent to it any more [s]: readiness fails twice, 2 s apart.
    noticed_s: float = 4.0
    # From a host's loss until its pods are started elsewhere [s]: Kubernetes' own 40 s and 300 s.
    evicted_s: float = 340.0
    # From a pod's start until it is asked [s]: the image, the archive, the worker.
    start_s: float = 30.0


@dataclass(frozen=True)
class Response:
    """What one replica does at a load: the simulation's answer, between which is interpolated."""

    # Robots of one replica, ascending.
    robots: list[float]
    # Share of control steps without an answer in time.
    misses: list[float]
    # Mean time in the queue [ms].
    wait_ms: list[float]
    p95_ms: list[float]
    busy: list[float]

    def misses_at(self, robots: float) -> float:
        """Return the share of control steps without an answer in time."""
        return float(np.interp(robots, self.robots, self.misses))

    def wait_s_at(self, robots: float) -> float:
        """Return the mean time in the queue [s]."""
        return float(np.interp(robots, self.robots, self.wait_ms)) / 1000


def response(curve: Curve, tier: Tier, carried: int, in_phase: float = 0.0) -> Response:
    """Simulate one replica at loads around the robots that it carries."""
    short = msgspec.structs.replace(tier, duration_s=SIMULATED_S)
    counts = sorted({max(1, round(share * max(1, carried))) for share in LOADS})
    found = [simulate(curve, short, Robots(count, tier.control_hz, in_phase), seed=count) for count in counts]
    return Response(
        [0.0, *map(float, counts)],
        [found[0].misses, *(one.misses for one in found)],
        [0.0, *(one.wait_ms for one in found)],
        [found[0].p95_ms, *(one.p95_ms for one in found)],
        [0.0, *(one.busy for one in found)],
    )


@dataclass(frozen=True)
class Second:
    """The fleet in one second."""

    time_s: float
    robots: int
    # Replicas that are asked, and those of them that answer.
    asked: int
    ready: int
    # Share of control steps without an answer in time.
    misses: float


@dataclass(frozen=True)
class Episode:
    """Something that happens to the fleet."""

    name: str
    seconds: list[Second]
    # Control steps without an answer in time, beyond those of the quiet fleet.
    lost_steps: float
    # From the event until the tier's share of misses is kept again [s]; infinity: not within the episode.
    recovered_s: float
    worst: float


@dataclass(frozen=True)
class Fleet:
    """How many replicas a fleet takes."""

    robots: int
    # Robots of one replica that keep the tier.
    carried: int
    # Replicas while all is well, and with those of the spare hosts.
    needed: int
    replicas: int
    hosts: int
    gpus: int
    # In the currency of `Site.replica_cost`: all replicas [1/h], and one robot's share.
    cost: float
    # Of one replica with its share of the robots.
    load: float
    p95_ms: float
    wait_ms: float
    misses: float
    # With one host less.
    load_without: float
    misses_without: float


def fleet(robots: int, carried: int, shown: Response, site: Site) -> Fleet:
    """Return the replicas for so many robots, of which each carries so many."""
    needed = math.ceil(robots / carried)
    hosts = math.ceil(needed / site.replicas_per_host) + site.spare_hosts
    replicas = needed + site.spare_hosts * site.replicas_per_host
    load = robots / replicas
    left = max(1, replicas - site.replicas_per_host)
    return Fleet(
        robots=robots,
        carried=carried,
        needed=needed,
        replicas=replicas,
        hosts=hosts,
        gpus=replicas * site.gpus_per_replica,
        cost=replicas * site.replica_cost,
        load=load,
        p95_ms=float(np.interp(load, shown.robots, shown.p95_ms)),
        wait_ms=1000 * shown.wait_s_at(load),
        misses=shown.misses_at(load),
        load_without=robots / left,
        misses_without=shown.misses_at(robots / left),
    )


@dataclass(frozen=True)
class Setting:
    """What an episode happens to, besides the fleet."""

    shown: Response
    tier: Tier
    site: Site
    scaler: Autoscaler


def lost_host(plan: Fleet, setting: Setting, name: str = "a lost host") -> Episode:
    """Let one host go, one minute into the episode."""
    site = setting.site
    gone = min(site.replicas_per_host, plan.replicas - 1)
    cluster = _Cluster(plan.replicas, plan.replicas, setting)
    seconds = []
    for time_s in range(EPISODE_S):
        dead = gone if EVENT_S <= time_s < EVENT_S + site.evicted_s + site.start_s else 0
        asked = dead if time_s < EVENT_S + site.noticed_s else 0
        seconds.append(cluster.second(time_s, plan.robots, dead, asked))
    return _episode(name, seconds, setting.tier)


def growth(plan: Fleet, setting: Setting) -> Episode:
    """Let half of the robots begin at once, on the replicas of the others, one minute into the episode."""
    cluster = _Cluster(max(1, math.ceil(plan.replicas / 2)), 10 * plan.replicas, setting)
    seconds = []
    for time_s in range(EPISODE_S):
        robots = plan.robots if time_s >= EVENT_S else plan.robots // 2
        seconds.append(cluster.second(time_s, robots, 0, 0))
    return _episode("twice the robots", seconds, setting.tier)


class _Cluster:
    """Replicas, those that start, and the autoscaler, second by second."""

    def __init__(self, ready: int, most: int, setting: Setting) -> None:
        self._ready, self._most = ready, most
        self._shown, self._scaler, self._site = setting.shown, setting.scaler, setting.site
        # When each that starts will be ready [s].
        self._starting: list[float] = []
        # What the autoscaler sees: the mean wait of every second of its window [s].
        self._waits: list[float] = []
        self._scaled_s = -math.inf

    def second(self, time_s: float, robots: int, dead: int, asked_dead: int) -> Second:
        """Let a second pass in which `dead` replicas answer nothing; `asked_dead` of them are still asked."""
        self._ready += sum(at <= time_s for at in self._starting)
        self._starting = [at for at in self._starting if at > time_s]
        answering = max(1, self._ready - dead)
        asked = answering + asked_dead
        load = robots / asked
        misses = self._shown.misses_at(load)
        self._waits = [*self._waits, self._shown.wait_s_at(load)][-int(self._scaler.window_s) :]
        self._scale(time_s, answering)
        share = (answering * misses + asked_dead) / asked
        return Second(time_s, robots, asked, answering, share)

    def _scale(self, time_s: float, answering: int) -> None:
        """Add replicas as a HorizontalPodAutoscaler does: their number times metric over target."""
        if time_s % self._scaler.period_s or time_s - self._scaled_s < self._scaler.doubling_s:
            return
        ratio = sum(self._waits) / len(self._waits) / self._scaler.target_wait_s
        wanted = min(2 * answering, math.ceil(answering * ratio), self._most)
        extra = wanted - answering - len(self._starting)
        if ratio > 1 + self._scaler.tolerance and extra > 0:
            self._scaled_s = time_s
            self._starting += [time_s + self._site.start_s] * extra


def _episode(name: str, seconds: Sequence[Second], tier: Tier) -> Episode:
    """Sum an episode up."""
    quiet = seconds[EVENT_S - 1].misses
    after = [second for second in seconds if second.time_s >= EVENT_S]
    bad = [second.time_s for second in after if second.misses > max(tier.max_deadline_misses, quiet)]
    recovered_s = (bad[-1] + 1 - EVENT_S) if bad else 0.0
    return Episode(
        name=name,
        seconds=list(seconds),
        lost_steps=sum(max(0.0, s.misses - quiet) * s.robots * tier.control_hz for s in after),
        recovered_s=math.inf if bad and bad[-1] == seconds[-1].time_s else recovered_s,
        worst=max(second.misses for second in after),
    )
