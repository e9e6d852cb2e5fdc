"""The benchmark of overlap runs: a real server on a device that sleeps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_sleeping_device_is_never_faster_than_it_can_be(tmp_path: Path) -> None:
    options = "--batch-ms 50 --batch 4 --clients 8 --duration-s 1 --workers 1 2"
    command = [sys.executable, "-m", "bench", "overlap", *options.split(), "--output", tmp_path / "overlap"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)

    assert run.returncode == 0, run.stderr
    measured = json.loads((tmp_path / "overlap.json").read_text())["measured"]
    assert [one["workers"] for one in measured] == [1, 2]
    for one in measured:
        assert one["failed"] == 0
        # The simulated device computes one batch at a time, whoever asks.
        assert 0 < one["rate_hz"] <= 1.05 * 1000 * one["mean_batch"] / one["batch_ms"]
