"""The table of what a policy understands: its cells, its disturbances, and what counts as good."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from vla.evaluation.episodes import Setup, run_episode
from vla.evaluation.language import LanguageEvaluation, markdown
from vla.evaluation.policies import ExpertPolicy, RandomPolicy
from vla.evaluation.understanding import STILL_STEPS, Outcome, cells
from vla.tabletop.commands import GOALS
from vla.tabletop.looks import PLAIN, draw_look
from vla.tabletop.phrasebook import BOOK
from vla.tabletop.simulator import Tabletop

DISTURBED = [cell for cell in cells() if cell.disturb is not None]


def test_cells_have_names_of_their_own_and_cover_acting_and_standing_still() -> None:
    names = [cell.name for cell in cells()]
    assert len(set(names)) == len(names)
    assert {cell.acts for cell in cells()} == {True, False}


def test_trials_depend_on_their_seed_and_walk_through_the_goals() -> None:
    for cell in cells():
        trials = [cell.trial(index, 7_000_000 + index) for index in range(12)]
        assert [trial.goal for trial in trials] == list(GOALS)
        assert trials == [cell.trial(index, 7_000_000 + index) for index in range(12)]
        assert all(trial.command.strip() for trial in trials)


def test_words_that_must_be_held_are_said_in_their_cell() -> None:
    [cell] = [cell for cell in cells() if cell.says == "never"]
    kept = {name for group in BOOK.never.values() for name in group}
    for index in range(20):
        assert kept & set(cell.trial(index, index).command.strip(".!?").replace(",", "").split())


@pytest.mark.parametrize("cell", DISTURBED, ids=lambda cell: cell.name)
def test_disturbances_change_pictures_and_keep_their_form(cell) -> None:
    with closing(Tabletop()) as env:
        env.reset(3)
        picture = env.render(96)
    disturbed = cell.disturb(picture)
    assert disturbed.shape == picture.shape
    assert disturbed.dtype == np.uint8
    assert np.abs(disturbed.astype(int) - picture).mean() > 1
    assert np.array_equal(disturbed, cell.disturb(picture))


def test_looks_of_cells_are_not_plain_where_they_say_so() -> None:
    random, blocks = np.random.default_rng(0), np.zeros((4, 3), np.float32)
    looks = {cell.name: cell.look(random, blocks) for cell in cells()}
    assert looks["seen phrasings"] == PLAIN
    assert looks["light at half"].light == 0.5
    assert np.linalg.norm(looks["camera moved 3 cm"].shift) == pytest.approx(0.03)
    assert np.linalg.norm(looks["camera turned 3 degrees"].turn) == pytest.approx(3)
    assert len(looks["three distractors"].distractors) == 3


def test_the_expert_sees_through_any_look_and_nothing_is_counted_as_held() -> None:
    cell = next(cell for cell in cells() if cell.look is draw_look)
    with closing(Tabletop()) as env:
        trial = cell.trial(4, 7_000_004)
        env.reset(trial.seed, trial.goal)
        env.look = cell.look(np.random.default_rng(0), env.blocks())
        episode = run_episode(env, ExpertPolicy(env), trial, cell.setup(Setup()))
    assert episode.success
    assert episode.held == 0


def test_an_episode_without_anything_to_do_is_short() -> None:
    cell = next(cell for cell in cells() if not cell.acts)
    with closing(Tabletop()) as env:
        episode = run_episode(env, RandomPolicy(), cell.trial(0, 7_000_000), cell.setup(Setup()))
    assert episode.steps == STILL_STEPS


def test_the_report_says_what_is_missed(tmp_path) -> None:
    archive = tmp_path / "some.mar"
    archive.write_bytes(b"archive")
    config = LanguageEvaluation(archive, episodes=4, only=("light at half", "nonsense"))
    outcomes = [
        Outcome("light at half", ("a",) * 4, (True,) * 3 + (False,), (False,) * 4, (False,) * 4, (0.1,) * 4),
        Outcome("nonsense", ("b",) * 4, (True,) * 4, (True,) * 4, (True,) * 4, (0.001,) * 4, (0.02,) * 4),
    ]
    text = markdown(config, outcomes)
    assert "| light at half | 75 [30, 95] | 80, missed | 0               | -    | -  " in text
    assert "| nonsense | 100 [51, 100] | 95     | 1                       | 2           | - " in text
    said = [
        replace(outcomes[0], done_in_time=(True, True, False, False), done_early=(False, False, False, True)),
        replace(outcomes[1], done_in_time=(False,) * 4, done_early=(False, True, True, False)),
    ]
    text = markdown(config, said)
    assert "| light at half | 75 [30, 95] | 80, missed | 0               | 67   | 25  " in text
    assert "| nonsense | 100 [51, 100] | 95     | 1                       | 2           | 50 " in text


def test_a_cell_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no cell is called telepathy$"):
        LanguageEvaluation(only=("telepathy",))
