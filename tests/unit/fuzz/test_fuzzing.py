"""Hostile input on everything that decodes it, the same in every run; `make fuzz` tries more of it."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
from brittle import load_brittle

from fuzz.run import Report, case, examine, fuzz, keep
from fuzz.target import Target
from fuzz.targets import load

# Inputs a target, and outcomes that show how far they come.
TARGETS = {
    "pictures": (250, {"decoded", "bad_image", "too_large"}),
    "json": (600, {"prepared", "malformed_body", "bad_image"}),
    "msgpack": (600, {"prepared", "malformed_body", "bad_image"}),
    "rows": (300, {"prepared", "invalid_value", "missing_field", "unknown_field", "bad_image"}),
    "http": (600, {"prepared", "bad_request", "malformed_body", "unsupported_media_type"}),
    "commands": (300, {"prepared", "invalid_value"}),
    "spec": (100, {"SpecError", "read"}),
}


@pytest.fixture(scope="module")
def targets(tiny_folder: Path) -> Mapping[str, Target]:
    return load(tiny_folder)


def test_every_target_is_tried(targets: Mapping[str, Target]) -> None:
    assert set(targets) == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_is_too_much(targets: Mapping[str, Target], name: str) -> None:
    (count, outcomes), report = TARGETS[name], Report(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a worker: Pillow's, of damaged pictures
        for index in range(count):
            examine(targets[name], case(targets[name], 11, index), index, report)

    assert [finding.detail for finding in report.findings] == []
    assert outcomes <= set(report.outcomes)


def test_what_is_too_much_is_found_and_shown_again(tmp_path: Path) -> None:
    report = fuzz(load_brittle, "brittle", 3, 60.0, most=24)

    assert report.inputs == 24
    found = {finding.kind.split()[0]: finding.index for finding in report.findings}
    assert set(found) == {"ValueError", "death", "slow"}
    assert found["ValueError"] < found["death"] < found["slow"]  # all that its process tried before it died
    target = load_brittle()["brittle"]
    for finding in report.findings:
        data = case(target, 3, finding.index)
        assert data[:1] == {"ValueError": b"a", "death": b"b", "slow": b"c"}[finding.kind.split()[0]]
        path = keep(finding, data, tmp_path)
        assert path.read_bytes() == data
        assert path.with_suffix(".txt").read_text().startswith(finding.kind)
