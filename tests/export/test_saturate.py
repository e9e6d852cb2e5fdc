"""Actions end at their bounds where bounds normalise them, and nowhere else."""

import msgspec
import pytest
from making import vector

from export.saturate import saturating
from vla_runtime.spec import ContinuousSpace, DiscreteSpace

SPACE = vector(
    ContinuousSpace, delta_x=("m", -0.03, 0.03), gripper=("1", 0.0, 1.0), horizon=1, control_hz=10.0
)
RELATIVE = tuple(
    msgspec.structs.replace(d, meaning="absolute", state="x", relative=True) for d in SPACE.dimensions
)


def test_bounds_that_normalise_are_where_the_policy_ends() -> None:
    assert saturating(SPACE) == msgspec.structs.replace(SPACE, saturating=True)


@pytest.mark.parametrize(
    "change",
    [
        {"normalisation": "quantiles"},
        {"normalisation": "mean_std"},
        {"statistics": msgspec.structs.replace(SPACE.statistics, low=(-1.0, 0.0), high=(1.0, 2.0))},
        {"dimensions": RELATIVE},
    ],
)
def test_others_reach_beyond_their_bounds(change: dict) -> None:
    space = msgspec.structs.replace(SPACE, **change)

    assert saturating(space) == space


def test_symbols_have_no_bounds() -> None:
    space = DiscreteSpace(vocabulary=("a", "b"), horizon=1, control_hz=1.0)

    assert saturating(space) is space
