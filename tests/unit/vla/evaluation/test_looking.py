"""The pointing game: what is a hit, how occlusion maps are made, and what the shipped policy looks at."""

import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from archive.read import unpack
from vla.evaluation.looking import (
    GREY,
    PATCH,
    SIZE,
    Look,
    Looking,
    covered,
    hits,
    look,
    markdown,
    show,
    spread,
)
from vla.tabletop.simulator import Tabletop
from vla_runtime.policy import Policy

BOX = np.array([0.25, 0.5, 0.5, 0.75])


@pytest.mark.parametrize(
    ("row", "column", "hit"), [(2, 1, True), (1, 1, False), (2, 0, False), (2, 2, False), (3, 1, False)]
)
def test_the_centre_of_the_largest_value_must_lie_in_the_box(row: int, column: int, *, hit: bool) -> None:
    heat = np.full((4, 4), 0.1)
    heat[row, column] = 0.2
    assert hits(heat, BOX) == hit


def test_a_patch_is_grey_and_the_rest_as_it_was() -> None:
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    changed = covered(picture, 8, 80)
    assert (changed[8 : 8 + PATCH, 80:] == GREY).all()
    assert changed.sum() == GREY * 3 * PATCH * PATCH
    assert picture.max() == 0


def test_a_square_has_the_mean_of_the_patches_that_cover_it() -> None:
    """Patches are two squares wide: corners have one, edges two, and inner squares four."""
    changes = np.array([[1.0, 2.0], [4.0, 8.0]])
    assert spread(changes).tolist() == [[1.0, 1.5, 2.0], [2.5, 3.75, 5.0], [4.0, 6.0, 8.0]]


def test_scenes_depend_on_their_seed_and_goals_come_in_turn() -> None:
    config = Looking(scenes=13)
    with closing(Tabletop()) as env:
        shown = [show(env, config, index) for index in (0, 1, 12, 0)]
        other = show(env, Looking(varied=True), 0)
    assert shown[0].goal == shown[2].goal != shown[1].goal
    np.testing.assert_array_equal(shown[0].picture, shown[3].picture)
    assert (other.picture != shown[0].picture).any()
    assert (shown[0].box[2:] > shown[0].box[:2]).all()


def test_the_shipped_policy_looks_at_the_commanded_block(policy_archive: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(Tabletop()) as env:
        policy = Policy.load(unpack(policy_archive, Path(folder)))
        for index in (4, 11):
            shown = show(env, Looking(), index)
            attention, occlusion = look(policy, shown)
            assert attention is not None
            assert occlusion.shape == (12, 12)
            assert hits(attention, shown.box)
            assert hits(occlusion, shown.box)


def test_the_table_counts_hits_and_says_who_gives_no_attention() -> None:
    found = [
        Look("one", 0, "go", attention=True, occlusion=False, chance=0.01),
        Look("one", 1, "go", attention=False, occlusion=True, chance=0.03),
        Look("two", 0, "go", attention=None, occlusion=True, chance=0.02),
    ]
    said = markdown(Looking(), found)
    assert "| `one`  | 50 [9, 91] | 50 [9, 91]    | 2                 |" in said
    assert "| `two`  | gives none | 100 [21, 100] | 2                 |" in said


def test_a_number_of_scenes_is_needed() -> None:
    with pytest.raises(ValueError, match=r"^scenes must be from 1 to 10000, got 0$"):
        Looking(scenes=0)
