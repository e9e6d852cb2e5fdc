"""The benchmark of overlap runs: real servers on a device that sleeps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_second_worker_prepares_while_the_first_computes(tmp_path: Path) -> None:
    options = "--batch-ms 100 --batch 4 --clients 16 --duration-s 3 --tries 1 --turns True --workers 1 2"
    command = [sys.executable, "-m", "bench", "overlap", *options.split(), "--output", tmp_path / "overlap"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)

    assert run.returncode == 0, run.stderr
    one, two = json.loads((tmp_path / "overlap.json").read_text())["measured"]
    assert [one["case"]["workers"], two["case"]["workers"]] == [1, 2]
    assert one["failed"] == two["failed"] == 0
    for found in (one, two):
        # The simulated device computes one batch at a time, whoever asks.
        assert 0 < found["rate_hz"] <= 1.05 * 1000 * found["mean_batch"] / found["compute_ms"]
    # By events: a batch whose device was free for less time than preparing it takes was prepared before.
    assert one["ahead"] < 0.5 < two["ahead"]
    assert one["busy"] < two["busy"]
