"""Two replicas behind the proxy: one goes under load, and clients see nothing of it."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from closed_loop import Load
from replicas import Running, proxy, replica


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
