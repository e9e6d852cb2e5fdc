"""Room for what archives unpack to: named when it is missing, and a volume where images are run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from replicas import write_version

from bench.faults.processes import ROOT

TMPFS = """
mount -t tmpfs -o size=8m none {folder}
TMPDIR={folder} exec {python} -m server.container --archive {archive}
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_start_without_room_says_so(tmp_path: Path) -> None:
    """An archive of 20 MB before a tmpfs of 8."""
    archive = write_version(tmp_path, "1.0", load=f"WEIGHTS = '{os.urandom(10_000_000).hex()}'")
    (tmp_path / "small").mkdir()
    script = TMPFS.format(folder=tmp_path / "small", python=sys.executable, archive=archive)
    run = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare" in run.stderr or "mount:" in run.stderr:
        pytest.skip(f"no mount namespace here: {run.stderr}")

    assert run.returncode == 1
    assert run.stderr.startswith(
        f"error: vla-1.0.mar need 20 MB unpacked, and {tmp_path}/small has 8 MB free: mount a larger volume"
    )


def test_archives_are_unpacked_into_a_volume() -> None:
    """Where the image's TMPDIR points, neither compose nor Kubernetes mounts memory."""
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    (scratch,) = re.findall(r"TMPDIR=(\S+)", dockerfile)
    assert f'VOLUME ["{scratch}"]' in dockerfile

    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    assert all(scratch in services[name]["volumes"] for name in ("server", "gpu-0", "gpu-1"))

    documents = yaml.safe_load_all((ROOT / "docker/kubernetes/base/server.yaml").read_text())
    (pod,) = [d["spec"]["template"]["spec"] for d in documents if d["kind"] == "Deployment"]
    (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == scratch]
    (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    assert "medium" not in volume["emptyDir"]
