"""Real servers for the tests: real archives, own ports, a deadline, and their log shown when a test fails."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from making import running, serve, write_archive, write_checkpoint

from archive.read import unpack
from export.export import Options, export
from server.process import TorchServe

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "checkpoints" / "grounded"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> object:
    """Add the log of every server that runs to the report of a failed test."""
    report = yield
    if report.failed:
        for server in running:
            report.sections.append((f"TorchServe {server.url}", server.log_tail(80)))
    return report


@pytest.fixture
def make_archive(tmp_path: Path) -> Callable[..., Path]:
    """`make_archive(handler=source, name=...)` writes an archive into the test's folder."""
    return lambda **options: write_archive(tmp_path, **options)


@pytest.fixture(scope="session")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A server whose model answers with the names of the request's fields."""
    with serve(write_archive(tmp_path_factory.mktemp("echo"))) as server:
        yield server


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
    with serve(policy_archive) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def tiny_archive(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its archive."""
    output = tmp_path_factory.mktemp("tiny_store") / "vla.mar"
    export(Options(str(tiny_checkpoint), output=output, buckets=(1, 2, 4, 8)))
    return output


@pytest.fixture(scope="session")
def tiny_folder(tiny_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its archive, unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    return unpack(tiny_archive, folder)
