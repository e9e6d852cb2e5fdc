"""Two replicas behind the proxy: one is killed under load, and clients see nothing of it."""

import time
from pathlib import Path

import psutil
from closed_loop import Load
from replicas import proxy, replica


def test_killed_replica_is_not_noticed(archive: Path, folder: Path) -> None:
    with replica(archive, folder) as first, replica(archive, folder) as second:
        with proxy(folder, first.port, second.port) as front:
            with Load(front.predictions_url, data={"sleep": "0.01"}) as load:
                load.wait_for(200)
                for process in [*psutil.Process(first.process.pid).children(recursive=True), first.process]:
                    process.kill()
                time.sleep(1)
                load.wait_for(200)

    assert set(load.outcomes) == {200}
    assert [line for line in front.log.read_text().splitlines() if '"attempts":"0"' in line] == []


def test_stopped_replica_is_not_noticed(archive: Path, folder: Path) -> None:
    with replica(archive, folder) as first, replica(archive, folder) as second:
        with proxy(folder, first.port, second.port) as front:
            with Load(front.predictions_url, data={"sleep": "0.01"}) as load:
                load.wait_for(200)
                assert first.stop() == 0
                load.wait_for(200)

    assert set(load.outcomes) == {200}
