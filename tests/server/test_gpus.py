"""Which GPU a worker gets, shown on any machine by an `nvidia-smi` that lists two."""

import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from making import STARTUP_TIMEOUT_S, write_archive

from server.errors import StartFailed
from server.ports import free_port
from server.process import TorchServe
from server.workers import Workers

# TorchServe counts the lines after the header.
TWO_GPUS = "#!/bin/sh\nprintf 'index\\n0\\n1\\n'\n"
# Says which GPU each worker has; `{most}` fit into its memory.
CROWDED = """
import json, pathlib

class Handler:
    def initialize(self, ctx):
        place = pathlib.Path(ctx.system_properties["model_dir"]).parent
        taken = [path for path in place.glob("*.taken")]
        if len(taken) == {most}:
            raise MemoryError("the GPU has no room left")
        (place / f"{{len(taken)}}.taken").touch()

    def handle(self, data, ctx):
        return [json.dumps(ctx.system_properties["gpu_id"]).encode() for _ in data]
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(TWO_GPUS)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("two_gpus")
def test_the_only_worker_gets_the_first_gpu_and_never_serves_on_the_cpu_instead(tiny_archive: Path) -> None:
    with (
        pytest.raises(
            StartFailed, match=r"GPU 0 was promised to this worker, and torch .* can use 0: check the"
        ),
        TorchServe(tiny_archive, port=free_port(), startup_timeout_s=STARTUP_TIMEOUT_S),
    ):
        pass


@pytest.mark.usefixtures("two_gpus")
def test_the_cpu_serves_where_that_is_asked_for(tiny_archive: Path) -> None:
    with TorchServe(tiny_archive, port=free_port(), startup_timeout_s=STARTUP_TIMEOUT_S, gpus=0) as server:
        assert server.ready()


def gpus_of(server: TorchServe) -> list[bool]:
    """Whether each worker has one."""
    (model,) = requests.get(f"{server.management_url}/models/echo", timeout=10).json()
    return [worker["gpu"] for worker in model["workers"]]


@pytest.mark.usefixtures("two_gpus")
def test_a_policy_has_two_workers_on_its_gpu(tmp_path: Path) -> None:
    archive, said = write_archive(tmp_path, CROWDED.format(most=9)), list[str]()
    options: dict[str, Any] = {"startup_timeout_s": STARTUP_TIMEOUT_S, "on_log": said.append}
    with TorchServe(archive, port=free_port(), **options) as server:
        assert gpus_of(server) == [True, True]
        assert server.capacity("echo")[1] == 2
        assert requests.post(server.predictions_url, timeout=10).text == "0"
    with TorchServe(archive, port=free_port(), workers_per_gpu=1, **options) as server:
        assert gpus_of(server) == [True]
    assert not any("fewer workers" in line for line in said)


@pytest.mark.usefixtures("two_gpus")
def test_a_policy_that_fits_into_the_gpu_once_has_one_worker(tmp_path: Path) -> None:
    archive, said = write_archive(tmp_path, CROWDED.format(most=1)), list[str]()
    options: dict[str, Any] = {"startup_timeout_s": STARTUP_TIMEOUT_S, "on_log": said.append}
    with TorchServe(archive, port=free_port(), **options) as server:
        assert server.capacity("echo")[1] == 1
        assert server.ready()
        assert requests.post(server.predictions_url, timeout=10).text == "0"
    assert "echo has fewer workers than 2 a GPU: a worker of echo failed to load; see the log" in said


@pytest.mark.usefixtures("two_gpus")
def test_a_policy_that_lost_a_worker_for_good_is_served_by_the_other(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, CROWDED.format(most=2))
    with TorchServe(archive, port=free_port(), startup_timeout_s=STARTUP_TIMEOUT_S) as server:
        assert server.workers() == {"echo": Workers(2, 2)}
        (model,) = requests.get(f"{server.management_url}/models/echo", timeout=10).json()
        psutil.Process(model["workers"][0]["pid"]).kill()
        deadline = time.monotonic() + 60
        while server.workers() != {"echo": Workers(1, 2)}:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server.ready()
        assert requests.post(server.predictions_url, timeout=10).text == "0"


def test_a_policy_has_one_worker_on_the_cpu(echo_server: TorchServe) -> None:
    assert gpus_of(echo_server) == [False]
