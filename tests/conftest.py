"""Real servers for the tests: real archives, own ports, a deadline, and their log shown when a test fails."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.process import TorchServe, free_port

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "checkpoints" / "command_attention"
# A worker imports torch; 2 busy cores take some seconds for it.
STARTUP_TIMEOUT_S = 120.0

ECHO = """
import json

def handle(data, ctx):
    return [json.dumps(sorted(row)).encode() for row in data or []] or None
"""

_running: list[TorchServe] = []


def write_archive(folder: Path, handler: str = ECHO, name: str = "echo") -> Path:
    """Write a real archive around a handler's source and return its path."""
    manifest = {
        "runtime": "python",
        "archiverVersion": "0.12.0",
        "model": {
            "modelName": name,
            "modelVersion": "1.0",
            "handler": "handler.py",
            "configFile": "model-config.yaml",
        },
    }
    path = folder / f"{name}.mar"
    with zipfile.ZipFile(path, "w") as mar:
        mar.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        mar.writestr("handler.py", handler)
        mar.writestr("model-config.yaml", "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\nmaxBatchDelay: 1\n")
    return path


def serve(archive: Path) -> Iterator[TorchServe]:
    """Serve an archive on free ports for the life of a fixture."""
    with TorchServe(archive, port=free_port(), startup_timeout_s=STARTUP_TIMEOUT_S) as server:
        _running.append(server)
        yield server
        _running.remove(server)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> object:
    """Add the log of every server that runs to the report of a failed test."""
    report = yield
    if report.failed:
        for server in _running:
            report.sections.append((f"TorchServe {server.url}", server.log_tail(80)))
    return report


@pytest.fixture
def make_archive(tmp_path: Path) -> Callable[..., Path]:
    """`make_archive(handler=source, name=...)` writes an archive into the test's folder."""
    return lambda **options: write_archive(tmp_path, **options)


@pytest.fixture(scope="session")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A server whose model answers with the names of the request's fields."""
    yield from serve(write_archive(tmp_path_factory.mktemp("echo")))


@pytest.fixture(scope="session")
def policy_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive exported from the default checkpoint by the command that users run."""
    archive = tmp_path_factory.mktemp("model_store") / "vla.mar"
    export = subprocess.run(
        [sys.executable, "-m", "export", CHECKPOINT, "--output", archive],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert export.returncode == 0, f"export of {CHECKPOINT} failed:\n{export.stdout}{export.stderr}"
    return archive


@pytest.fixture(scope="session")
def served_policy(policy_archive: Path) -> Iterator[TorchServe]:
    """A server of the default checkpoint's archive."""
    yield from serve(policy_archive)
