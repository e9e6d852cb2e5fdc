"""Another version under load: nobody notices but by the version, or the old one serves on."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from closed_loop import Load
from replicas import write_version

from bench.faults.processes import ROOT, Running, replica


@pytest.fixture(scope="module")
def swapped_replica(archive: Path, folder: Path) -> Iterator[Running]:
    with replica(archive, folder) as running:
        yield running


def swap(running: Running, archive: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    port = str(running.torchserve_port)
    return subprocess.run(
        [sys.executable, "-m", "server.swap", archive, "--port", port, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def versions(running: Running) -> list[str]:
    url = f"http://127.0.0.1:{running.torchserve_port + 1}/models/vla/all"
    return [model["modelVersion"] for model in requests.get(url, timeout=10).json()]


def test_swap_under_load(swapped_replica: Running, folder: Path) -> None:
    archive = write_version(folder, "2.0")
    with Load(swapped_replica.predictions_url, data={"sleep": "0.02"}) as load:
        load.wait_for(50)
        run = swap(swapped_replica, archive)
        load.wait_for(50)

    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("vla 2.0 serves; 1.0 is removed\n")
    assert set(load.outcomes) == {200}
    assert load.views == [["1.0", "2.0"]] * 16
    assert versions(swapped_replica) == ["2.0"]


@pytest.mark.parametrize(
    ("version", "broken", "reason"),
    [
        ("3.0", {"actions": [[0.5, 0.75]]}, "differs from the archived answer by 1\n"),
        (
            "3.1",
            {"load": "raise ValueError('no statistics')"},
            "a worker of vla 3.1 failed to load; see the log\n",
        ),
    ],
)
def test_broken_version_is_rolled_back(
    swapped_replica: Running, folder: Path, version: str, broken: dict[str, Any], reason: str
) -> None:
    before = versions(swapped_replica)
    archive = write_version(folder, version, **broken)
    with Load(swapped_replica.predictions_url, data={"sleep": "0.02"}) as load:
        run = swap(swapped_replica, archive)
        load.wait_for(50)

    assert (run.returncode, run.stderr.startswith("error: "), run.stderr.endswith(reason)) == (1, True, True)
    assert f"rolled back to vla {before[0]}\n" in run.stdout
    assert set(load.outcomes) == {200}
    assert load.views == [before] * 16
    assert versions(swapped_replica) == before


def test_refusals_change_nothing(swapped_replica: Running, folder: Path, tmp_path: Path) -> None:
    before = versions(swapped_replica)
    served = folder / f"vla-{before[0]}.mar"
    elsewhere = write_version(tmp_path, "9.0")

    assert f"vla {before[0]} is what is served" in swap(swapped_replica, served).stderr
    assert "expected " + "0" * 64 in swap(swapped_replica, elsewhere, "--sha256", "0" * 64).stderr
    assert "registering vla-9.0.mar got 404" in swap(swapped_replica, elsewhere).stderr
    assert versions(swapped_replica) == before


def test_a_zip_bomb_is_not_unpacked(swapped_replica: Running, folder: Path) -> None:
    before = versions(swapped_replica)
    bomb = folder / "bomb.mar"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as mar:
        mar.writestr("MAR-INF/MANIFEST.json", bytes(400 << 20))
    digest = hashlib.sha256(bomb.read_bytes()).hexdigest()

    run = swap(swapped_replica, bomb, "--sha256", digest)

    assert run.returncode == 1
    assert "unpacks to 419.4 MB, more than the " in run.stderr
    assert versions(swapped_replica) == before
