"""Two replicas behind the proxy: one goes under load, and clients see nothing of it."""

import itertools
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from closed_loop import Load

from bench.faults.processes import Running, proxy, replica


@pytest.fixture
def other_replica(archive: Path, folder: Path) -> Iterator[Running]:
    with replica(archive, folder) as running:
        yield running


@pytest.fixture
def load(lasting_replica: Running, other_replica: Running, folder: Path) -> Iterator[Load]:
    with (
        proxy(folder, lasting_replica.port, other_replica.port) as front,
        Load(front.predictions_url, data={"sleep": "0.02"}) as load,
    ):
        load.wait_for(100)
        yield load


def test_killed_replica_is_not_noticed(other_replica: Running, load: Load) -> None:
    for process in [
        *psutil.Process(other_replica.process.pid).children(recursive=True),
        other_replica.process,
    ]:
        process.kill()
    time.sleep(1)
    load.wait_for(100)

    assert set(load.outcomes) == {200}


def test_stopped_replica_is_not_noticed(other_replica: Running, load: Load) -> None:
    assert other_replica.stop() == 0
    load.wait_for(100)

    assert set(load.outcomes) == {200}


@pytest.fixture
def vanished() -> Iterator[int]:
    """A port whose host is gone: packets to it are lost. Here: a queue of connections that stays full."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    port = listening.getsockname()[1]
    held = [socket.socket() for _ in range(8)]
    for one in held:
        one.settimeout(0)
        one.connect_ex(("127.0.0.1", port))
    yield port
    for one in [listening, *held]:
        one.close()


def test_a_vanished_replica_stalls_no_request(lasting_replica: Running, vanished: int, folder: Path) -> None:
    """Formerly one request in two seconds waited a second for it: four in this test."""
    took_s = []
    with proxy(folder, lasting_replica.port, vanished) as front:
        end_s = time.monotonic() + 8
        for _ in itertools.takewhile(lambda _: time.monotonic() < end_s, itertools.count()):
            started = time.monotonic()
            assert requests.post(front.predictions_url, files={"command": "x"}, timeout=30).ok
            took_s.append(time.monotonic() - started)
        asked = [json.loads(line) for line in front.log.read_text().splitlines() if line.startswith("{")]

    print(f"of {len(took_s)} requests the slowest took {max(took_s):.3f} s")
    # By nginx's clock, which leaves out what this process waits for. A busy machine may stop once as long.
    stalled = [line["seconds"] for line in asked if line["seconds"] >= 0.9]
    assert len(took_s) > 20
    assert len(stalled) <= 1


def workers(front: Running) -> set[int]:
    """Process ids of nginx's workers; it starts others when it reads its configuration again."""
    children = psutil.Process(front.process.pid).children()
    return {child.pid for child in children if child.name() == "nginx"}


def test_the_proxy_follows_a_name(lasting_replica: Running, folder: Path) -> None:
    """A name's addresses are looked up again: what it stands for may change while the proxy serves."""
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.2 replica\n")
    lookup = folder / "bin"
    lookup.mkdir()
    (lookup / "getent").write_text(f"#!/bin/sh\ncat {hosts}\n")
    (lookup / "getent").chmod(0o755)
    path = f"{lookup}:/usr/sbin:/usr/bin:/bin"
    with proxy(folder, lasting_replica.port, PATH=path) as front:
        before = workers(front)
        hosts.write_text("127.0.0.3 replica\n")
        deadline = time.monotonic() + 20
        while workers(front) <= before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert requests.post(front.predictions_url, files={"command": "x"}, timeout=30).ok
