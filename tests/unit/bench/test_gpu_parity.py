import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.gpu import parity
from bench.gpu.parity import Case
from bench.gpu.part import Run


def ends_in_the_second(connection: Any, device: str, cases: list[Case]) -> None:
    for case in cases:
        if case.architecture == "second":
            os._exit(1)
        connection.send(msgspec.structs.replace(case, difference=0.0))


@pytest.mark.slow
def test_a_process_that_dies_costs_one_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(parity, "_compare", ends_in_the_second)
    monkeypatch.setattr(
        parity,
        "_cases",
        lambda run: [Case(name, "torchscript", "float32") for name in ("first", "second", "third")],
    )
    found = parity.parity(Run("cpu", time.monotonic() + 60, tmp_path, lambda line: None))
    rows = {
        line.split(" | ")[0].strip("| "): line for line in found.report.splitlines() if line.startswith("|")
    }
    assert not found.ok
    assert "0.0e+00" in rows["first"]
    assert "its process died" in rows["second"]
    assert "**failed**" in rows["second"]
    assert "0.0e+00" in rows["third"]
