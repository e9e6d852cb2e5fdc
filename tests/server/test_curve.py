"""A real server's curve: what the gate counts under closed loops, and the plan that it makes."""

import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.plan.curve import Curve
from server.process import TorchServe

ROOT = Path(__file__).parents[2]


def loadtest(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_archive_is_served_measured_and_planned_with(policy_archive: Path, tmp_path: Path) -> None:
    ended = loadtest(
        *("curve", str(policy_archive), "--clients", "1", "4", "--seconds", "1.5"),
        *("--output", f"{tmp_path}/curve.json"),
    )

    assert ended.returncode == 0, ended.stderr
    curve = Curve.read(tmp_path / "curve.json")
    one, four = curve.loops
    assert (one.clients, four.clients, curve.workers) == (1, 4, 1)
    # Every answer of a lone client was in a batch of its own; four clients had some in common.
    assert max(one.batches) <= 2
    assert max(four.batches) >= 2
    assert one.requests <= sum(size * count for size, count in one.batches.items())
    # A batch takes a part of what its client waits for.
    assert 0 < curve.of(1) < one.mean_ms + 5
    assert list(curve.batch_ms.values()) == sorted(curve.batch_ms.values())
    assert curve.start_s is not None
    assert curve.start_s > 0.5


def test_server_without_the_gate_makes_no_curve(served_policy: TorchServe, tmp_path: Path) -> None:
    output = tmp_path / "curve.json"
    ended = loadtest("curve", served_policy.url, "--clients", "1", "--seconds", "1", "--output", str(output))

    assert ended.returncode == 3
    assert "error: the server counted no batch: is it one of this version, behind its gate?" in ended.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("server", "status", "said"),
    [
        ("none.mar", 2, "error: no archive at none.mar"),
        ("http://robots.example", 3, "the URL must end with a port"),
        ("http://127.0.0.1:9", 3, "error: no description of model 'vla' at http://127.0.0.1:10"),
    ],
)
def test_what_can_not_be_measured_is_refused(server: str, status: int, said: str) -> None:
    ended = loadtest("curve", server)

    assert ended.returncode == status
    assert said in ended.stderr
