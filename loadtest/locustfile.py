"""Robots that load a served policy: `locust -f loadtest/locustfile.py -H http://127.0.0.1:8080 Robot`.

Works headless and with Locust's web page. `python -m loadtest` starts it and judges what it records.

    Robot       one picture and command at a fixed control rate, with a phase and a clock of its own
    Mixed       robots of several commands and picture sizes
    Burst       all robots in phase: one burst of requests a control step
    Eager       asks again as soon as it is answered
    Adversary   one bad request a second; anything but the right refusal is a failure
"""

import argparse
import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Group
from locust import FastHttpUser, constant, events, task
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest import corpus
from loadtest.access import Access
from loadtest.answers import Contract, description_in, fetch, read_error
from loadtest.body import FORM, form
from loadtest.fleet import DRIFT, Fleet, connection_class, judge_answer
from loadtest.known import Known
from loadtest.samples import OK, WRONG, Sample

# How many deadlines a client waits for an answer, at least 2 s.
PATIENCE = 5

_fleets: dict[Environment, Fleet] = {}
_indices = itertools.count()


class PolicyUser(FastHttpUser):
    """A client that asks the policy and checks every answer's content."""

    abstract = True
    wait_time = constant(0)
    concurrency = 1
    # Picture sizes (width, height) [pixels].
    sizes = ((224, 224),)

    def __init__(self, environment: Environment) -> None:
        self.fleet = _fleets[environment]
        self.options: Any = environment.parsed_options
        self.network_timeout = self.connection_timeout = max(2.0, PATIENCE * self.fleet.deadline_ms / 1000)
        # Locust itself would take any certificate.
        self.insecure, self.ssl_context_factory = False, self.fleet.access.tls
        self.default_headers = self.fleet.access.headers
        super().__init__(environment)
        self.index = next(_indices)
        self.path = f"/predictions/{self.options.model}"
        self.pictures = self.fleet.pictures(self.sizes)
        self.command = corpus.commands()[self.index % len(corpus.commands())]

    def ask(self, due: float, skipped: int = 0) -> None:
        """Send one observation that was due at `due` (`time.perf_counter`)."""
        fleet, known = self.fleet, self.fleet.known_request()
        body = fleet.known_form(known) if known else fleet.form(self.pictures, self.command)
        headers = {"Content-Type": FORM, "Accept": "application/json"}
        if self.options.same_clock:
            headers["X-Request-Start"] = f"t={time.time():.6f}"
        right = partial(fleet.known.check, request=known) if fleet.known and known else None
        self.post(body, headers, due, partial(judge_answer, fleet.contract, right=right), skipped)

    def post(
        self,
        body: bytes,
        headers: dict[str, str],
        due: float,
        judge: Callable[[int, bytes], tuple[str, str, int]],
        skipped: int = 0,
    ) -> None:
        """Send a request and record its outcome."""
        kind = type(self).__name__.lower()
        lag_s = time.perf_counter() - due
        due_s = time.time() - lag_s
        reply = self.client.post(
            self.path,
            body,  # pyright: ignore[reportArgumentType]  # bytes are sent as they are
            headers=headers,
            name=kind,
            catch_response=True,
        )
        latency_ms: float = reply.request_meta["response_time"]
        if reply.status_code:
            outcome, detail, batch = judge(reply.status_code, reply.content or b"")
        else:
            error = getattr(reply, "error", None)
            outcome, detail, batch = connection_class(error), repr(error), 0
        with reply:
            if outcome == OK:
                reply.success()
            else:
                reply.failure(f"{outcome}: {detail}")
        self.fleet.record(Sample(kind, due_s, lag_s * 1000, latency_ms, outcome, skipped, batch, detail))


class Robot(PolicyUser):
    """Asks at the control rate. A step that comes while it still waits for an answer is skipped."""

    def on_start(self) -> None:
        """Choose a clock and a phase."""
        clock = 1 + self.fleet.random.uniform(-DRIFT, DRIFT)
        self.period_s = clock / self.fleet.control_hz
        self.due = time.perf_counter() + self.fleet.random.uniform(0, self.period_s)
        self.skipped = 0

    @task
    def step(self) -> None:
        """Wait for the next control step and take it."""
        gevent.sleep(max(0.0, self.due - time.perf_counter()))
        self.take()
        self.skipped = math.floor((time.perf_counter() - self.due) / self.period_s)
        self.due += (self.skipped + 1) * self.period_s

    def take(self) -> None:
        """Take one control step."""
        self.ask(self.due, self.skipped)


class Mixed(Robot):
    """A robot of a mixed fleet: another command every few steps, and pictures of several sizes."""

    sizes = ((96, 96), (224, 224), (320, 240), (640, 480))

    def take(self) -> None:
        """Take one control step, from time to time under a new command."""
        if self.fleet.random.random() < 0.02:
            self.command = self.fleet.random.choice(corpus.commands())
        super().take()


class Burst(Robot):
    """As many robots as `--burst` says, all in phase: the arrivals of one control step come at once."""

    def __init__(self, environment: Environment) -> None:
        options: Any = environment.parsed_options
        self.size: int = options.burst
        self.concurrency = self.size
        super().__init__(environment)

    def take(self) -> None:
        """Let every robot take the same step."""
        group = Group()
        for _ in range(self.size):
            group.spawn(self.ask, self.due, self.skipped)
        group.join()


class Eager(PolicyUser):
    """Asks again as soon as it is answered."""

    @task
    def step(self) -> None:
        """Ask now."""
        self.ask(time.perf_counter())


class Adversary(PolicyUser):
    """Sends one bad request a second, and expects each to be refused for what it is."""

    wait_time = constant(1)

    @task
    def attack(self) -> None:
        """Send the next bad request."""
        body, content_type, status, code = self.fleet.random.choice(self._bad())

        def judge(got: int, text: bytes) -> tuple[str, str, int]:
            said = read_error(text)[0]
            right = (got, said) == (status, code)
            return (OK if right else WRONG + "refusal", f"{got} {said} instead of {status} {code}", 0)

        self.post(body, {"Content-Type": content_type}, time.perf_counter(), judge)

    def _bad(self) -> list[tuple[bytes, str, int, str]]:
        """Return bodies, their content types, and the status and code that each deserves."""
        contract = self.fleet.contract
        images = {name: next(self.pictures) for name in contract.image_fields}
        good = {"command": "go"} if contract.takes_command else {}
        bad = [
            (form(images, {**good, "speed": "9"}), FORM, 400, "unknown_field"),
            (form(images | {contract.image_fields[0]: b"no picture"}, good), FORM, 400, "bad_image"),
            (form({}, good), FORM, 400, "missing_field"),
            (b"command=go", "text/plain", 415, "unsupported_media_type"),
        ]
        if contract.takes_command:
            long_or_short = [form(images, {"command": command}) for command in ("", "x" * 513)]
            bad += [(body, FORM, 422, "invalid_value") for body in long_or_short]
        return bad


@events.init_command_line_parser.add_listener
def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="vla", help="name of the served model")
    add("--policy", default="", help="archive or policy.json; without it the management API is asked")
    add("--management-url", default="http://127.0.0.1:8081", help="management API")
    add("--access", default="", help="file of keys and certificates, as `loadtest.access` writes it")
    add("--known", default="", help="file of requests with their answers, as `loadtest.known` writes it")
    add("--control-hz", type=float, default=10.0, help="rate at which each robot asks [Hz]")
    add(
        "--deadline-ms", type=float, default=100.0, help="oldest age of an answer that is worth anything [ms]"
    )
    add("--burst", type=int, default=8, help="robots in phase of each Burst client")
    add("--adversaries", type=int, default=0, help="Adversary clients among the users")
    add("--same-clock", type=int, default=1, help="1: tell the server when each request was sent")
    add("--seed", type=int, default=0, help="of pictures, states, phases and clocks")
    add("--stop-after-s", type=float, default=0.0, help="end this long after all clients run [s]; 0: never")
    add("--recording", default="", help="folder for what this process records")


@events.init.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    options: Any = environment.parsed_options
    description = (
        description_in(Path(options.policy))
        if options.policy
        else fetch(options.management_url, options.model)
    )
    # Each process sends pictures of its own.
    seed = options.seed * 1_000 + os.getpid() % 1_000
    access = Access.read(Path(options.access)) if options.access else Access()
    fleet = Fleet(
        Contract.of(description),
        access,
        Known.read(Path(options.known)) if options.known else None,
        control_hz=options.control_hz,
        deadline_ms=options.deadline_ms,
        seed=seed,
    )
    _fleets[environment] = fleet
    Adversary.fixed_count = options.adversaries
    for user in environment.user_classes:
        if issubclass(user, PolicyUser):
            fleet.pictures(user.sizes)
    # Robots have CPUs of their own: where the system lets it, this process goes before the server's. Niceness
    # would not do it: Linux applies that inside a session only, and the server has its own.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    gevent.spawn(fleet.listen)


@events.spawning_complete.add_listener
def _ready(**_: Any) -> None:
    for environment, fleet in _fleets.items():
        fleet.ready_s = time.time()
        options: Any = environment.parsed_options
        if options.stop_after_s and environment.runner and not isinstance(environment.runner, WorkerRunner):
            gevent.spawn_later(options.stop_after_s, environment.runner.quit)


@events.quitting.add_listener
def _save(environment: Environment, **_: Any) -> None:
    options: Any = environment.parsed_options
    if options.recording:
        _fleets[environment].save(Path(options.recording) / f"{os.getpid()}.samples")
