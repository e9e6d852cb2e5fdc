"""Confidence held against what there was to do: bins, their error, and both mistakes by threshold."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vla.evaluation.calibration import (
    Asked,
    Bin,
    Calibration,
    ask,
    balanced,
    binned,
    expected_error,
    markdown,
    mistakes,
    plot,
)
from vla.evaluation.policies import ArchivedPolicy, RandomPolicy
from vla.evaluation.report import Rate
from vla.evaluation.understanding import cells
from vla.tabletop.simulator import Tabletop
from vla_runtime.errors import SpecError


def answers(*confidences: float, possible: bool) -> list[Asked]:
    return [Asked("kind", "go", possible, confidence) for confidence in confidences]


SURE = answers(0.95, 1.0, 0.91, possible=True)
MIXED = [*SURE, *answers(0.1, possible=True), *answers(0.0, 0.05, 0.93, possible=False)]


def test_answers_of_about_one_confidence_share_a_bin() -> None:
    found = binned(MIXED)
    assert [(round(one.confidence, 4), one.possible) for one in found] == [
        (0.025, Rate(0, 2)),
        (0.1, Rate(1, 1)),
        (0.9475, Rate(3, 4)),
    ]


def test_the_expected_error_weighs_bins_by_their_answers() -> None:
    bins = [Bin(0.9, Rate(3, 6)), Bin(0.2, Rate(1, 2))]
    assert expected_error(bins) == pytest.approx((6 * 0.4 + 2 * 0.3) / 8)


def test_below_the_threshold_a_command_is_held() -> None:
    assert mistakes(MIXED, 0.1) == (Rate(0, 4), Rate(1, 3))
    assert mistakes(MIXED, 0.11) == (Rate(1, 4), Rate(1, 3))
    assert mistakes(MIXED, 0.94) == (Rate(2, 4), Rate(0, 3))


def test_there_are_as_many_of_both() -> None:
    even = balanced(MIXED, 10)
    assert [sum(one.possible == possible for one in even) for possible in (True, False)] == [3, 3]
    assert len(balanced(MIXED, 2)) == 4


def test_the_report_marks_the_shipped_threshold(tmp_path: Path) -> None:
    (tmp_path / "a.mar").write_bytes(b"x")
    said = markdown(Calibration(tmp_path / "a.mar"), MIXED, 0.25)
    assert "| **0.25** (shipped) | 25.0 [4.6, 69.9]" in said
    assert "(shipped)" not in markdown(Calibration(tmp_path / "a.mar"), MIXED, None)
    plot(MIXED, 0.25, tmp_path / "p.png")
    assert np.asarray(Image.open(tmp_path / "p.png")).std() > 10


def test_the_shipped_policy_tells_apart_what_can_be_done(policy_archive: Path) -> None:
    with closing(Tabletop()) as env, ArchivedPolicy(policy_archive) as policy:
        asked = [ask(env, policy, cell, 3, 8_000_000) for cell in cells()[::8]]
    assert {one.possible for one in asked} == {True, False}
    assert mistakes(asked, 0.15) == (Rate(0, 3), Rate(0, 2))


def test_a_policy_without_a_confidence_is_refused() -> None:
    with closing(Tabletop()) as env, pytest.raises(SpecError, match=r"^random answers without a confidence$"):
        ask(env, RandomPolicy(), cells()[0], 0, 8_000_000)


def test_a_number_of_scenes_is_needed() -> None:
    with pytest.raises(ValueError, match=r"^scenes must be from 1 to 1000, got 0$"):
        Calibration(scenes=0)
