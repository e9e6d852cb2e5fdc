"""From real frames to batches: which goals, which words, which episodes."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from vla.models import END_ID
from vla.tabletop.collection import Collection, collect
from vla.tabletop.commands import COLOURS, GOALS, HELD_OUT, PHRASES, Goal, held_out, phrase
from vla.tabletop.demonstrations import Demonstrations
from vla.tabletop.labels import boxes as blocks_in_the_picture
from vla.tabletop.labels import points
from vla.tabletop.texts import PIECES
from vla.training.batches import Batches
from vla.training.settings import Settings
from vla.training.setup import describe
from vla_runtime.actions import unnormalise
from vla_runtime.errors import SpecError


def goals(batch):
    """Return the goal of each command: int64 [B * K], index into `GOALS`."""
    return batch.skill * len(COLOURS) + batch.target


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tabletop"
    collect(Collection(out=folder, episodes=6, horizon=2, image_size=32, varied=0, workers=1))
    return Settings(architecture="command_attention", preset="tiny", data=folder)


def batches(settings, **changes):
    dataset = Demonstrations.load(settings.data)
    values = {"seed": 0, "validation_share": 0.3, "counterfactual": 0.8} | changes
    return Batches(dataset, describe(settings, dataset), **values)


def test_batch_gives_each_frame_the_action_of_each_of_its_commands(settings):
    drawn = batches(settings, counterfactual=1.0)
    batch = drawn.train(step=5, frames=6, commands=3)
    assert batch.commands_per_frame == 3
    assert batch.images.shape == (6, 1, 3, 32, 32)
    dataset, config = drawn.dataset, drawn.config
    assert config.state
    tokenizer = config.command_tokenizer()
    said = {
        tuple(tokenizer(form.format(colour=colour))[0][: batch.input_ids.shape[1]]): goal
        for goal, (task, colour) in enumerate(dataset.description.goals)
        for form in PHRASES[task]
    }
    physical = unnormalise(batch.actions.numpy(), drawn.space)
    for index, ids in enumerate(batch.input_ids.numpy()):
        goal = said[tuple(ids)]
        state = unnormalise(batch.state.numpy()[index // 3], config.state)
        row = np.abs(dataset.state - state).sum(1).argmin()
        np.testing.assert_allclose(physical[index], dataset.actions[row, goal], atol=1e-6)


def equal(one, two):
    """Whether two batches hold the same."""
    return all(
        mine is its if mine is None or its is None else torch.equal(mine, its)
        for mine, its in zip(one, two, strict=True)
    )


def test_batches_depend_on_seed_and_step_alone(settings):
    one, two = batches(settings).train(7, 4, 2), batches(settings).train(7, 4, 2)
    assert equal(one, two)
    assert not torch.equal(one.actions, batches(settings).train(8, 4, 2).actions)
    assert not torch.equal(one.actions, batches(settings, seed=1).train(7, 4, 2).actions)


def test_split_is_by_episode_and_without_counterfactuals_goals_are_kept(settings):
    drawn = batches(settings, counterfactual=0.0)
    training, held = drawn.frames
    episode = drawn.dataset.episode
    assert not set(episode[training]) & set(episode[held])
    assert len(training) + len(held) == len(episode)
    batch = drawn.train(0, 4, 3)
    actions = batch.actions.unflatten(0, (4, 3))
    assert torch.equal(actions, actions[:, :1].expand_as(actions))


def test_held_out_phrasings_are_not_trained():
    assert all(not set(PHRASES[task]) & set(HELD_OUT[task]) for task in PHRASES)


def test_excluded_goals_are_neither_commanded_nor_shown(settings):
    excluded = (Goal("lift", "blue"), Goal("reach", "red"))
    drawn = batches(settings, excluded=excluded)
    left, kept = (np.array(indices) for indices in (drawn.goals[1], drawn.goals[0]))
    assert [GOALS[i] for i in left] == [Goal("reach", "red"), Goal("lift", "blue")]
    assert not np.isin(drawn.dataset.goal[drawn.frames[0]], left).any()
    trained = torch.cat([goals(drawn.train(step, 8, 8)) for step in range(8)])
    assert set(trained.tolist()) == set(kept.tolist())
    assert set(goals(drawn.validation(64, 4)).tolist()) <= set(kept.tolist())
    assert set(goals(drawn.validation(64, 4, excluded=True)).tolist()) == set(left.tolist())


def test_shuffled_commands_are_of_other_goals_than_the_actions(settings):
    drawn = batches(settings)
    plain, shuffled = drawn.validation(64, 2), drawn.validation(64, 2, shuffled=True)
    assert torch.equal(plain.actions, shuffled.actions)
    assert torch.equal(plain.images, shuffled.images)
    tokenizer = drawn.config.command_tokenizer()
    said = {tokenizer(held_out(goal, i))[0].tobytes(): goal for goal in GOALS for i in range(4)}
    commanded = [said[full(row)] for row in shuffled.input_ids]
    assert all(goal != GOALS[index] for goal, index in zip(commanded, goals(shuffled), strict=True))
    assert len(set(commanded)) == len(GOALS)


def test_skills_are_labelled_in_the_order_of_the_models_names(settings):
    drawn = batches(settings)
    names = ("open", "push", "reach", "pick")
    config = msgspec.structs.replace(drawn.config, model={"skills": names})
    plain, named = drawn.train(0, 8, 4), replace(drawn, config=config).train(0, 8, 4)
    assert [names[skill] for skill in named.skill] == [
        ("reach", "pick", "push")[skill] for skill in plain.skill
    ]
    config = msgspec.structs.replace(drawn.config, model={"skills": ("reach", "pick")})
    with pytest.raises(SpecError, match="the model's skills lack push, which the demonstrations show"):
        replace(drawn, config=config)


def test_targets_are_the_blocks_that_commands_mean(settings):
    drawn = batches(settings)
    batch = drawn.train(0, 8, 4)
    boxes = batch.per_command(batch.boxes)[torch.arange(32), 0, batch.target]
    objects = batch.per_command(batch.objects)[torch.arange(32), batch.target]
    np.testing.assert_allclose(boxes, blocks_in_the_picture(objects.numpy()), atol=1e-6)
    np.testing.assert_allclose(batch.hand_points[:, 0], points(batch.hand.numpy()), atol=1e-6)
    assert set(goals(batch).tolist()) <= set(range(len(GOALS)))


def selective(settings, **changes):
    settings = replace(settings, architecture="grounded")
    return batches(settings, sentences=20, **changes)


def test_impossible_commands_and_foreign_pictures_call_for_standing_still(settings):
    drawn = selective(settings)
    batch = drawn.train(0, 64, 8)
    assert 0.2 < 1 - batch.possible.float().mean() < 0.4
    assert 0 < (~batch.shown).sum() < 16
    still = ~(batch.possible & batch.per_command(batch.shown))
    physical = unnormalise(batch.actions.numpy(), drawn.space)
    assert np.abs(physical[still][..., :3]).max() < 1e-6
    assert drawn.config.state
    opening = unnormalise(batch.per_command(batch.state).numpy()[still], drawn.config.state)[:, 3]
    assert set(opening < 0.85) == {False, True}
    np.testing.assert_allclose(physical[still][:, 0, 3], np.where(opening < 0.85, 1, -1), atol=1e-6)
    assert np.abs(physical[~still.numpy()][..., :3]).max() > 0.01


def test_a_selective_batch_depends_on_seed_and_step_alone(settings):
    one, two = selective(settings).train(7, 4, 2), selective(settings).train(7, 4, 2)
    assert equal(one, two)


def test_validation_of_a_selective_policy_says_the_test_split(settings):
    drawn = selective(settings)
    batch, trained = drawn.validation(16, 4), drawn.train(0, 16, 4)
    assert batch.possible.all()
    assert batch.shown.all()
    said, learned = ({tuple(ids[:40]) for ids in part.input_ids.tolist()} for part in (batch, trained))
    assert not said & learned


def full(ids):
    """Pad a command as the tokenizer does."""
    padded = np.full(77, END_ID)
    padded[: len(ids)] = ids
    return padded.tobytes()


def spoken(settings):
    told = replace(settings, architecture="rt2", text_tokens=16)
    dataset = Demonstrations.load(settings.data)
    return Batches(dataset, describe(told, dataset), 0, 0.3, 0.8)


def words(indices):
    """Return the text that indices of pieces spell."""
    return "".join(PIECES[index] for index in indices.tolist()).strip()


def test_questions_are_answered_in_words_and_held_and_commands_are_captioned(settings):
    drawn = spoken(settings)
    batch = drawn.train(0, 12, 8)
    assert batch.text is not None
    texts = [words(row) for row in batch.text]
    captions = torch.tensor([text.startswith("the ") for text in texts])
    assert 20 < captions.sum() < 76
    assert {text for text, said in zip(texts, captions, strict=True) if not said} > {"yes", "no", "two"}
    whole = torch.full((96, 77), END_ID)
    whole[:, : batch.input_ids.shape[1]] = batch.input_ids
    tokenizer = drawn.config.command_tokenizer()
    forms = [(goal, index) for goal in GOALS for index in range(len(PHRASES[goal.task]))]
    known = {tuple(tokenizer(phrase(*form))[0].tolist()) for form in forms}
    assert [tuple(ids) in known for ids in whole.tolist()] == captions.tolist()
    physical = unnormalise(batch.actions.numpy(), drawn.space)
    np.testing.assert_allclose(physical[~captions][..., :3], 0, atol=1e-7)
    assert np.abs(physical[captions][..., :3]).max() > 0.01
    for text, goal in zip(texts, goals(batch).tolist(), strict=True):
        if text.startswith("the "):
            assert text.endswith(f"I {GOALS[goal].task} the {GOALS[goal].colour} block")


def test_a_batch_without_texts_is_as_ever(settings):
    silent = batches(replace(settings, architecture="rt2"))
    assert silent.train(0, 4, 2).text is None
    assert silent.validation(4, 2).text is None
    assert equal(spoken(settings).train(3, 4, 2), spoken(settings).train(3, 4, 2))
