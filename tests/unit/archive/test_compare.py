"""A served answer against the archive's record: numbers by their tolerance, names by equality."""

from typing import Any

import pytest

from archive.compare import mismatch


def continuous(**provenance: Any) -> dict[str, Any]:
    return {"example": {"actions": [[0.0, 100.0]], "names": []}, "provenance": provenance}


STATED = {"judged_by": "largest_difference", "units": [1e-3, 1.0]}


def test_each_dimension_has_its_own_tolerance() -> None:
    policy = continuous(example_tolerance=STATED)

    assert mismatch(policy, [[0.0009, 100.9]]) is None
    assert mismatch(policy, [[0.002, 100.0]]) == (
        "2 times what rounding explains, it differs from the archived answer by 0.002"
    )
    assert mismatch(policy, [[0.0, 98.0]]) is not None
    assert mismatch(policy, [[float("nan"), 100.0]]) is not None


def test_the_mean_is_judged_where_the_archive_says_so() -> None:
    policy = continuous(example_tolerance=STATED | {"judged_by": "mean_difference"})

    assert mismatch(policy, [[0.0019, 100.0]]) is None
    assert mismatch(policy, [[0.0021, 100.0]]) is not None


def test_an_archive_that_states_none_is_held_to_a_thousandth() -> None:
    assert mismatch(continuous(), [[0.0009, 100.0]]) is None
    assert mismatch({"example": {"actions": [[0.5]]}}, [[0.75]]) == (
        "2.5e+02 times what rounding explains, it differs from the archived answer by 0.25"
    )


@pytest.mark.parametrize("actions", [[[0.0]], [[0.0, 100.0], [0.0, 100.0]], []])
def test_other_shapes_are_named(actions: list[list[float]]) -> None:
    assert str(mismatch(continuous(), actions)).startswith("the archived answer has 1 x 2 numbers, got ")


def chosen(*names: str, probabilities: tuple[float, ...] = (0.4, 0.6)) -> list[dict[str, Any]]:
    return [{"name": name, "index": 0, "probabilities": list(probabilities)} for name in names]


def test_names_are_compared_by_equality() -> None:
    policy = {"example": {"actions": [[0.4, 0.6]], "names": ["drop"]}}

    assert mismatch(policy, chosen("drop")) is None
    assert mismatch(policy, chosen("lift")) == "the archived answer is drop, got lift"
    assert mismatch(policy, chosen("drop", "drop")) == "the archived answer is drop, got drop, drop"
    assert mismatch(policy, chosen("drop", probabilities=(0.3, 0.7))) is not None
