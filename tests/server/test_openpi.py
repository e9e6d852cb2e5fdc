"""Policies of the real openpi, imported by one command: HTTP equals what the library computed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from golden.folders import TOKENIZER, rebuilt
from golden.over_http import check_answers
from making import STARTUP_TIMEOUT_S, running

from server.ports import free_port
from server.process import TorchServe

# Policies, and what is said of them besides; tests/unit/test_foreign_openpi.py has the other robots.
POLICIES = {
    "openpi_pi0_aloha": ("--robot", "aloha", "--format", "eager"),
    "openpi_pi05_droid": ("--robot", "droid"),
}


def imported(name: str, folder: Path) -> Path:
    """Export a golden folder by the command that docs/import.md shows."""
    golden, output = rebuilt(name, folder), folder / f"{name}.mar"
    arguments = ["--from", "openpi", golden, "--names", golden / "meta" / "names.json", "--margin", "20"]
    arguments += ["--tokenizer", TOKENIZER, *POLICIES[name], "--buckets", "1", "2", "4", "--output", output]
    done = subprocess.run(
        [sys.executable, "-m", "export", *map(str, arguments)],
        # So small a policy is traced sooner by one thread, on a busy machine by far.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    folder = tmp_path_factory.mktemp("openpi")
    with ThreadPoolExecutor(2) as pool:
        archives = list(pool.map(lambda name: imported(name, folder), POLICIES))
    with TorchServe(archives, port=free_port(), startup_timeout_s=2 * STARTUP_TIMEOUT_S) as server:
        running.append(server)
        yield server
        running.remove(server)


@pytest.mark.parametrize("name", POLICIES)
def test_http_equals_openpi_alone_and_in_a_batch(server: TorchServe, name: str) -> None:
    check_answers(server.url, name)
