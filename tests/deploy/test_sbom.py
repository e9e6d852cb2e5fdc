"""The bill of materials is what the lock files and the front end's jar say."""

import json
import re
import subprocess
import sys

import pytest

from bench.faults.processes import ROOT


@pytest.fixture(scope="module")
def written() -> str:
    command = [sys.executable, ROOT / "scripts" / "sbom.py"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_every_package_and_library_is_there(written: str, target: str) -> None:
    path = ROOT / "build" / f"sbom-{target}.json"
    document = json.loads(path.read_text())
    purls = [component["purl"] for component in document["components"] if "purl" in component]
    locked = re.findall(
        r"^([a-z0-9.-]+)==", (ROOT / f"docker/requirements-{target}.txt").read_text(), re.MULTILINE
    )

    assert f"build/sbom-{target}.json: {len(document['components'])} components" in written
    assert len(set(purls)) == len(purls)
    assert {purl.split("@")[0] for purl in purls if purl.startswith("pkg:pypi/")} == {
        f"pkg:pypi/{n}" for n in locked
    }
    assert "pkg:maven/io.netty/netty-codec-http@4.1.53.Final" in purls
