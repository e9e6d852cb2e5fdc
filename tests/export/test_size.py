"""A policy of two gigabytes: neither side has a second copy of its weights in memory."""

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests

from server.ports import free_port
from server.process import TorchServe
from server.warm_up import warm_up

ROOT = Path(__file__).parents[2]
# 32 layers of 4096 x 4096 float32 weights [bytes].
WEIGHTS = 32 * 4096 * 4096 * 4
SPARE = 1 << 30
PACKAGE = """
import torch
from torch import nn


class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4096, 4096, bias=False) for _ in range(32)])

    def act(self, images, command, state, noise):
        x = images["front"].flatten(1)[:, :1].expand(-1, 4096)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return {"actions": x[:, None, :2]}


def build():
    torch.manual_seed(0)
    return Large()
"""
POLICY = """
from pathlib import Path

import numpy as np
from large import build

from export.source import Eager, Observation, Source
from vla_runtime.spec import Camera, ContinuousSpace, Dimension, Statistics


def make():
    space = ContinuousSpace(
        dimensions=tuple(Dimension(name=n, unit="1", low=-1, high=1) for n in "ab"),
        normalisation="identity", statistics=Statistics(), horizon=1, control_hz=10.0,
    )
    return Source(
        model=build().eval(), name="large", cameras=(Camera(name="front", width=8, height=8),), action=space,
        eager=Eager(Path(__file__).parent / "large", "large:build"),
        example=Observation({"front": np.full((8, 8, 3), 99, np.uint8)}),
    )
"""
EXPORT = """
import resource, runpy, sys
sys.argv = ["export", *sys.argv[1:]]
try:
    runpy.run_module("export", run_name="__main__")
finally:
    print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["eager", "torchscript"])
def test_two_gigabytes_are_exported_and_served_without_a_second_copy(tmp_path: Path, format_: str) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "policy.py").write_text(POLICY)
    archive = tmp_path / "large.mar"
    arguments = [
        f"{tmp_path}/policy.py:make",
        "--output",
        str(archive),
        "--format",
        format_,
        "--buckets",
        "1",
        "2",
    ]

    done = subprocess.run(
        [sys.executable, "-c", EXPORT, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"PEAK (\d+)", done.stdout)
    assert found
    with TorchServe(archive, port=free_port(), startup_timeout_s=300) as server:
        warm_up(server, 2)
        assert requests.get(f"{server.management_url}/models/large", timeout=30).ok
        workers = [
            p
            for p in psutil.Process(server.pid).children(recursive=True)
            if "model_service_worker" in " ".join(p.cmdline())
        ]
        served = max(peak(worker.pid) for worker in workers)
    exported = int(found[1])
    sizes = {"export": exported, "worker": served, "weights": WEIGHTS}
    print(format_, {name: f"{size / 1e9:.2f} GB" for name, size in sizes.items()})
    assert exported <= WEIGHTS + SPARE
    assert served <= WEIGHTS + SPARE


def peak(pid: int) -> int:
    """Return the most memory that a process has had resident [bytes]."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
