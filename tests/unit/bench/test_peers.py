"""The comparison with other servers: its ratios, and where they are installed, the peers themselves."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from bench.generator import Sample, Samples
from bench.load import Answers, summarise
from bench.peers.compare import CLIENTS, OURS, Comparison, blocks
from loadtest.document import Table


def answers(rate_hz: int, latency_s: float = 0.01) -> Answers:
    return summarise(Samples([Sample(0.0, latency_s, 200, b"")] * rate_hz, 1.0, 0.1, 0))


def test_ratios_are_of_the_medians() -> None:
    ours = {clients: [answers(100), answers(90), answers(300)] for clients in CLIENTS}
    theirs = {clients: [answers(200, 0.004), answers(50, 0.005), answers(250, 0.006)] for clients in CLIENTS}
    comparison = Comparison("tiny", {OURS: ours, "mosec": theirs}, {OURS: 500.0, "mosec": 600.0})

    (table,) = [block for block in blocks(comparison) if isinstance(block, Table)]

    assert table.cells[1:] == [
        [OURS, "10.0", "100 (1.00)", "100 (1.00)", "100 (1.00)", "0", "500"],
        ["mosec", "5.0", "200 (0.50)", "200 (0.50)", "200 (0.50)", "0", "600"],
    ]


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, ("fastapi", "mosec", "uvicorn"))), reason="pip install -e '.[peers]'"
)
def test_peers_answer_all_that_ours_answers(policy_archive: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", policy_archive, "--peers", "--quick", "--output", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)

    assert run.returncode == 0, run.stderr
    found = msgspec.json.decode((tmp_path / "peers.json").read_bytes())["measured"]
    for loads in found["phases"].values():
        for turns in loads.values():
            assert all(answers["failed"] == 0 < answers["requests"] for answers in turns)
            assert all(answers["batch_sizes"] for answers in turns)  # every answer was read as a chunk
