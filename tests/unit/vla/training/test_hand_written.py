"""What the shipped `grounded` makes of sentences that were written by hand."""

from collections import Counter
from pathlib import Path

import pytest
from making import write_checkpoint

from vla.tabletop.commands import GOALS
from vla.training.hand_written import HELD, read, sentences
from vla_runtime.errors import SpecError

ROOT = Path(__file__).parents[4]


def test_sentences_mean_goals_of_the_tabletop():
    said = sentences()
    goals = {f"{goal.task} {goal.colour}" for goal in GOALS}
    assert len({each.text for each in said}) == len(said) == 439
    assert {each.goal for each in said} == goals | {None}


def test_shipped_checkpoint_reads_them():
    said = sentences()
    answers = read(ROOT / "checkpoints" / "grounded", said)
    count, right = Counter(each.kind for each in said), Counter[str]()
    for each, answer in zip(said, answers, strict=True):
        right[each.kind] += answer == (each.goal or HELD)
    # Chance is one in twelve for a goal. What must not be done is held nearly always.
    for kind in ("stop", "absent"):
        assert right[kind] == count[kind], kind
    for kind in ("other", "forbidden"):
        assert right[kind] >= 0.9 * count[kind], kind
    for kind in ("plain", "synonym", "typo", "negation", "landmark"):
        assert right[kind] >= 0.7 * count[kind], kind


def test_other_architectures_are_refused(tmp_path):
    other = write_checkpoint(tmp_path, "command_attention")
    with pytest.raises(SpecError, match="is a command_attention: only grounded says what it reads"):
        read(other, sentences())
