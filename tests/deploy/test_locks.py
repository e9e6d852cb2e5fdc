"""The images' lock files are pyproject.toml's versions, with hashes."""

import re
import tomllib

import pytest

from bench.faults.processes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(("target", "torch"), [("cpu", "+cpu"), ("cuda", "")])
def test_locks_match_the_project(target: str, torch: str) -> None:
    lock = (ROOT / f"docker/requirements-{target}.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9-]+==\S+) \\\n    --hash=sha256:", lock, re.MULTILINE))
    wanted = {*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["serve"]}
    wanted = {pin + torch if pin.startswith("torch==") else pin for pin in wanted}

    assert wanted - locked == set(), "run docker/lock"
    assert len(locked) == len(re.findall(r"^\S+==", lock, re.MULTILINE))
