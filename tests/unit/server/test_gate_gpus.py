"""GPU metrics on the gate's metrics port, from a program named `nvidia-smi`."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from small_torchserve import Running, gate

from server.gate import gpus
from server.gate.scrape import Scrape

TWO = """#!/bin/sh
echo "$@" >> "$0.asked"
echo "0, 87, 40960, 81920, 61, 412.50"
echo "1, [N/A], 1024, 81920, 33, [N/A]"
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "nvidia-smi"
    path.write_text(TWO)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return path


def scraped(*, times: int = 1) -> list[str]:
    """What the metrics port says after TorchServe's own."""
    said: list[str] = []

    async def check(running: Running) -> None:
        scrape = Scrape(running.hop.upstream._port, lambda: b"own 1\n")  # noqa: SLF001
        server = await asyncio.start_server(scrape.serve, "127.0.0.1", 0)
        for _ in range(times):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            said.append((await reader.read()).decode().partition("own 1\n")[2])
            writer.close()
        scrape.close()
        server.close()

    gate(check)
    return said


@pytest.mark.usefixtures("program")
def test_each_gpu_has_its_gauges_and_what_is_not_known_is_left_out() -> None:
    lines = [line for line in scraped()[0].splitlines() if not line.startswith("# HELP")]

    assert lines == [
        "# TYPE vla_gpu_utilization_ratio gauge",
        'vla_gpu_utilization_ratio{gpu="0"} 0.87',
        "# TYPE vla_gpu_memory_used_bytes gauge",
        'vla_gpu_memory_used_bytes{gpu="0"} 42949672960',
        'vla_gpu_memory_used_bytes{gpu="1"} 1073741824',
        "# TYPE vla_gpu_memory_bytes gauge",
        'vla_gpu_memory_bytes{gpu="0"} 85899345920',
        'vla_gpu_memory_bytes{gpu="1"} 85899345920',
        "# TYPE vla_gpu_temperature_celsius gauge",
        'vla_gpu_temperature_celsius{gpu="0"} 61',
        'vla_gpu_temperature_celsius{gpu="1"} 33',
        "# TYPE vla_gpu_power_watts gauge",
        'vla_gpu_power_watts{gpu="0"} 412.5',
    ]


def test_a_host_without_gpus_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert scraped() == [""]


def test_a_driver_that_fails_takes_no_other_metric_along(program: Path) -> None:
    program.write_text("#!/bin/sh\necho 'Unable to determine the device handle: GPU is lost'\nexit 15\n")

    assert scraped(times=2) == ["", ""]


def test_a_driver_that_hangs_is_not_waited_for_and_asked_once(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def hang(program: str) -> str:
        """Take longer than all scrapes together: what hangs in the kernel can't even be killed."""
        asked.append(program)
        time.sleep(1)
        return "0, 87, 40960, 81920, 61, 412.50"

    monkeypatch.setattr(gpus, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(gpus, "_ask", hang)

    assert scraped(times=3) == ["", "", ""]
    assert asked == [str(program)]
