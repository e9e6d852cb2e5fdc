"""Actions end at their bounds where bounds normalise them, and nowhere else."""

import math
from typing import Any

import msgspec
import pytest
import torch
from making import vector
from torch import Tensor, nn

from export.saturate import saturated
from vla_runtime.spec import ContinuousSpace

SPACE = vector(
    ContinuousSpace, delta_x=("m", -0.03, 0.03), gripper=("1", 0.0, 1.0), horizon=1, control_hz=10.0
)
SAID = torch.tensor([[[1.2, -3.0]], [[-0.4, 0.9]], [[math.nan, 1.0001]]])


class Fixed(nn.Module):
    """Answers the same, whatever it sees."""

    def act(self, *_: Tensor) -> dict[str, Tensor]:
        return {"actions": SAID, "confidence": torch.ones(3)}


def answer(space: Any) -> dict[str, Tensor]:
    return saturated(Fixed(), space).act(*[torch.zeros(3)] * 5)


def test_overshoot_of_a_bound_means_the_bound() -> None:
    outputs = answer(SPACE)

    assert outputs["actions"][:2].tolist() == [[[1.0, -1.0]], [[pytest.approx(-0.4), pytest.approx(0.9)]]]
    assert outputs["actions"][2, 0].isnan().tolist() == [True, False]  # left to the safety limits
    assert outputs["confidence"].tolist() == [1, 1, 1]


def test_dimension_that_is_not_normalised_ends_at_its_own_bounds() -> None:
    outputs = answer(msgspec.structs.replace(SPACE, passthrough=("gripper",)))

    assert outputs["actions"][:2].tolist() == [[[1.0, 0.0]], [[pytest.approx(-0.4), pytest.approx(0.9)]]]


def test_other_statistics_reach_beyond_the_bounds() -> None:
    assert answer(msgspec.structs.replace(SPACE, normalisation="quantiles"))["actions"] is SAID
