"""Which GPU a worker gets, shown on any machine by an `nvidia-smi` that lists two."""

import os
from pathlib import Path

import pytest
from making import STARTUP_TIMEOUT_S

from server.errors import StartFailed
from server.ports import free_port
from server.process import TorchServe

# TorchServe counts the lines after the header.
TWO_GPUS = "#!/bin/sh\nprintf 'index\\n0\\n1\\n'\n"


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(TWO_GPUS)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("two_gpus")
def test_the_only_worker_gets_the_first_gpu_and_never_serves_on_the_cpu_instead(tiny_archive: Path) -> None:
    with (
        pytest.raises(
            StartFailed, match=r"GPU 0 was promised to this worker, and torch .* can use 0: check the"
        ),
        TorchServe(tiny_archive, port=free_port(), startup_timeout_s=STARTUP_TIMEOUT_S),
    ):
        pass


@pytest.mark.usefixtures("two_gpus")
def test_the_cpu_serves_where_that_is_asked_for(tiny_archive: Path) -> None:
    with TorchServe(tiny_archive, port=free_port(), startup_timeout_s=STARTUP_TIMEOUT_S, gpus=0) as server:
        assert server.ready()
