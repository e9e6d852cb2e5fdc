"""A replica: the archive that was meant, nothing lost when it stops, a status that tells how it ended."""

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import requests
from closed_loop import Load, in_flight
from replicas import write_version

from bench.faults.processes import ROOT, Running, proxy, replica


def test_gate_passes_predictions_health_and_metrics(lasting_replica: Running) -> None:
    def status(method: str, path: str, port: int = lasting_replica.port) -> int:
        return requests.request(method, f"http://127.0.0.1:{port}{path}", timeout=10).status_code

    assert status("POST", "/predictions/vla") == 200
    assert status("GET", "/health/ready") == 200
    assert status("GET", "/health/live") == 200
    assert status("GET", "/predictions/vla") == 405
    for path in ("/ping", "/models", "/models/vla", "/metrics", "/v2/health"):
        assert status("GET", path) == 404
    metrics_port = lasting_replica.port + 1
    assert status("GET", "/metrics", metrics_port) == 200
    assert status("POST", "/predictions/vla", metrics_port) == 404


def test_requests_in_flight_and_queued_are_answered(archive: Path, folder: Path) -> None:
    with replica(archive, folder) as running:
        family = psutil.Process(running.process.pid).children(recursive=True)
        # Four are in a worker, eight wait in TorchServe's queue.
        with in_flight(running.predictions_url, count=12, sleep_s=0.3) as answers:
            assert running.stop() == 0

    assert [answer.status_code for answer in answers] == [200] * 12
    assert running.log.read_text().endswith("requests that were taken are answered\nstopped\n")
    assert psutil.wait_procs(family, timeout=5)[1] == []


def test_not_ready_before_it_stops(archive: Path, folder: Path) -> None:
    with replica(archive, folder, "--drain-delay-s", 2) as running:
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        answer = requests.get(running.url + "/health/ready", timeout=5)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert requests.post(running.predictions_url, files={"x": "1"}, timeout=5).status_code == 200
        assert running.process.wait(30) == 0


def test_stop_under_load_loses_nothing(archive: Path, folder: Path) -> None:
    with (
        replica(archive, folder) as running,
        proxy(folder, running.port) as front,
        Load(front.predictions_url, data={"sleep": "0.02"}) as load,
    ):
        load.wait_for(100)
        assert running.stop() == 0
        time.sleep(0.5)

    assert set(load.outcomes) == {200, 503}  # answered, or refused before it was taken
    assert load.wrong == []


def test_requests_that_outlast_the_drain_are_an_error(archive: Path, folder: Path) -> None:
    with replica(archive, folder, "--drain-timeout-s", 1) as running:
        lost = threading.Thread(target=post_and_lose, args=(running.predictions_url,))
        lost.start()
        time.sleep(0.5)
        assert running.stop() == 1
        lost.join()

    assert "error: requests were still open 1 s after the signal to stop\n" in running.log.read_text()


def post_and_lose(url: str) -> None:
    with pytest.raises(requests.ConnectionError):
        requests.post(url, files={"sleep": "8"}, timeout=30)


def test_killed_jvm_is_an_error(archive: Path, folder: Path) -> None:
    with replica(archive, folder) as running:
        running.java.kill()
        assert running.process.wait(30) == 1

    assert "error: TorchServe ended by itself with status -9\n" in running.log.read_text()


def refused(archive: Path, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "server.container", "--archive", archive, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert run.stdout == ""
    return run.stderr


def test_archive_is_verified_before_start(tmp_path: Path) -> None:
    archive = write_version(tmp_path, "1.0")
    digest = archive.with_name(archive.name + ".sha256")

    assert re.fullmatch(
        rf"error: {archive} has SHA-256 [0-9a-f]{{64}}, expected {'0' * 64}: not loaded\n",
        refused(archive, "--sha256", "0" * 64),
    )
    assert "has 64 hexadecimal digits in lower case, got 'ABC'" in refused(archive, "--sha256", "ABC")
    archive.write_bytes(archive.read_bytes() + b" ")
    assert "expected " + digest.read_text().split()[0] in refused(archive)
    digest.unlink()
    assert refused(archive).startswith(f"error: no digest for {archive}: give --sha256, or `sha256sum ")
