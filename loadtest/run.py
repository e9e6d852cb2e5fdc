"""One run of the load generator: Locust headless against a server, watched, judged."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from loadtest import samples
from loadtest.access import NOTHING, Access
from loadtest.judge import Judgement, judge, window
from loadtest.known import Known
from loadtest.samples import Recording
from loadtest.tiers import Tier
from loadtest.watch import Reading, ServerNumbers, Watch

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
USERS = {"robots": "Robot", "mixed": "Mixed", "burst": "Burst", "eager": "Eager"}
# Locust's own start, its pictures and its end [s].
MARGIN_S = 60.0


class RunFailed(RuntimeError):
    """The load generator itself failed; the message ends with what it printed."""


@dataclass(frozen=True)
class Target:
    """The server under test."""

    # Root of the inference API.
    url: str
    management_url: str
    metrics_url: str
    model: str
    access: Access = NOTHING
    # Whether the clock of another host is synchronised with this one's.
    synchronised: bool = False

    @property
    def predictions_url(self) -> str:
        """Where requests are posted."""
        return f"{self.url}/predictions/{self.model}"

    @property
    def same_host(self) -> bool:
        """Whether the server runs on this host."""
        return urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")

    @property
    def same_clock(self) -> bool:
        """Whether a request's age can be told across the load generator's clock and the server's."""
        return self.same_host or self.synchronised


@dataclass(frozen=True)
class Subject:
    """What is loaded and judged."""

    target: Target
    # The policy's own, which answers are checked by.
    description: dict[str, Any]
    # Requests whose right answer is known, some of which are asked under load.
    known: Known


class Result(msgspec.Struct, frozen=True):
    """One run: its tier, what was recorded and read, and the judgement."""

    tier: Tier
    recording: Recording
    memory: list[Reading]
    server: ServerNumbers | None
    # Cores that other programs on the server's host took; None where it is another host.
    bystanders: float | None
    judgement: Judgement

    @property
    def begin_s(self) -> float:
        """When the measurement began [s since the epoch]."""
        return window(self.recording, self.tier)[0]


def run(
    subject: Subject,
    tier: Tier,
    *,
    generators: int = 1,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Result:
    """Load the server as the tier says, and judge it.

    Args:
        subject: the server and what is known of its policy
        tier: promises, robots and times
        generators: processes of the load generator
        seed: of pictures, states, phases and clocks
        say: gets a line about what happens

    Raises:
        RunFailed: the load generator could not run; nothing is known about the server.
    """
    say(
        f"{tier.robots} robots at {tier.control_hz:g} Hz ({tier.scenario}) for {tier.duration_s:g} s, "
        f"after {tier.ramp_s + tier.warm_up_s:g} s of ramp and warm-up"
    )
    target = subject.target
    with tempfile.TemporaryDirectory() as folder:
        command = _command(subject, tier, Path(folder), generators=generators, seed=seed)
        with Watch(
            target.management_url, target.metrics_url, target.model, same_host=target.same_host
        ) as watch:
            _locust(command, tier)
        try:
            recording = samples.read(Path(folder).glob("*.samples"))
        except ValueError as error:
            raise RunFailed(str(error)) from error
    company = (watch.bystanders or 0.0) / (os.cpu_count() or 1)
    judgement = judge(recording, tier, _judged(watch.readings), subject.known.findings, company)
    return Result(tier, recording, watch.readings, watch.numbers, watch.bystanders, judgement)


def _judged(readings: list[Reading]) -> list[float]:
    """Return the memory that a tier bounds: the accelerator's, else the workers' resident memory."""
    return [reading.resident if reading.accelerator is None else reading.accelerator for reading in readings]


def _command(subject: Subject, tier: Tier, folder: Path, *, generators: int, seed: int) -> list[str]:
    """Return Locust's command line; what is long is written into the folder for it."""
    target, policy = subject.target, folder / "policy.json"
    policy.write_bytes(msgspec.json.encode(subject.description))
    clients = 1 if tier.scenario == "burst" else tier.robots
    users = clients + tier.adversaries
    options = {
        "-f": LOCUSTFILE,
        "-H": target.url,
        "-u": users,
        "-r": users / tier.ramp_s if tier.ramp_s else users,
        "--stop-after-s": tier.warm_up_s + tier.duration_s,
        "--stop-timeout": 30,
        "--exit-code-on-error": 0,
        "--loglevel": "WARNING",
        "--model": target.model,
        "--policy": policy,
        "--access": target.access.write(folder / "access.json"),
        "--known": subject.known.write(folder / "known"),
        "--control-hz": tier.control_hz,
        "--deadline-ms": tier.deadline_ms,
        "--burst": tier.robots,
        "--adversaries": tier.adversaries,
        "--same-clock": int(target.same_clock),
        "--seed": seed,
        "--recording": folder,
    }
    if generators > 1:
        options["--processes"] = generators
    command = [sys.executable, "-m", "locust", "--headless", "--only-summary"]
    command += [str(part) for option in options.items() for part in option]
    return [*command, USERS[tier.scenario], *(["Adversary"] if tier.adversaries else [])]


def _locust(command: list[str], tier: Tier) -> None:
    limit_s = tier.ramp_s + tier.warm_up_s + tier.duration_s + MARGIN_S
    started = time.monotonic()
    try:
        ended = subprocess.run(
            command,
            cwd=LOCUSTFILE.parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"Locust was still running after {time.monotonic() - started:.0f} s") from error
    if ended.returncode:
        raise RunFailed(f"Locust ended with status {ended.returncode}:\n{ended.stdout[-3000:]}")
