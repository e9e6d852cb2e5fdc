"""What is measured is never what demonstrations may have shown."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from vla.evaluation.calibration import Calibration
from vla.evaluation.delays import DelayEvaluation
from vla.evaluation.evaluate import Evaluation
from vla.evaluation.language import LanguageEvaluation
from vla.evaluation.looking import Looking
from vla.evaluation.tasks import TaskEvaluation
from vla.evaluation.text import TextEvaluation
from vla.tabletop.collection import FIRST_SCENE, SEED_STRIDE, leave_to_demonstrations

MEASURE = (
    Calibration,
    DelayEvaluation,
    partial(Evaluation, archive=Path("vla.mar")),
    LanguageEvaluation,
    Looking,
    partial(TaskEvaluation, archive=Path("vla.mar")),
    TextEvaluation,
)


@pytest.mark.parametrize("made", MEASURE)
def test_no_scene_is_one_of_demonstrations(made: Callable[..., object]) -> None:
    made(first_seed=FIRST_SCENE - SEED_STRIDE)
    with pytest.raises(ValueError, match=f"^first_seed must leave the seeds from {FIRST_SCENE} on to demo"):
        made(first_seed=FIRST_SCENE - 1)


def test_the_last_seed_below_is_left() -> None:
    leave_to_demonstrations(FIRST_SCENE - 3, 3)
    leave_to_demonstrations(0, 1)
    for first_seed, count in ((FIRST_SCENE - 2, 3), (-1, 1), (FIRST_SCENE + SEED_STRIDE, 1)):
        with pytest.raises(ValueError, match=r"^first_seed must leave"):
            leave_to_demonstrations(first_seed, count)
