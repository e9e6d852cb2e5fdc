"""The simulated robot, its commands and its expert, on the real simulator."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from vla.tabletop.commands import COLOURS, GOALS, HELD_OUT, PHRASES, TASKS, Goal, held_out, phrase
from vla.tabletop.expert import ended, expert_action, expert_chunk
from vla.tabletop.labels import boxes
from vla.tabletop.looks import PLAIN, draw_look
from vla.tabletop.simulator import ACTION_HIGH, BLOCK_LANE, EPISODE_STEPS, STATE, Tabletop


@pytest.fixture(scope="module")
def env() -> Iterator[Tabletop]:
    simulator = Tabletop()
    yield simulator
    simulator.close()


def finish(env: Tabletop, goal: Goal) -> int:
    """Let the expert pursue ``goal``, commanded or not, until the episode is over."""
    while not env.step(expert_action(env, goal)):
        pass
    return env.steps


def frozen(env: Tabletop) -> bytes:
    return env.snapshot().physics.tobytes()


def test_reset_is_determined_by_the_seed(env: Tabletop) -> None:
    env.reset(3)
    first, goal, picture = frozen(env), env.goal, env.render()
    finish(env, env.goal)
    env.reset(3)
    assert (frozen(env), env.goal) == (first, goal)
    assert np.array_equal(env.render(), picture)
    env.reset(3, Goal("lift", "blue"))
    assert (frozen(env), env.goal) == (first, Goal("lift", "blue"))
    env.reset(4)
    assert frozen(env) != first


def test_an_episode_is_determined_by_its_actions(env: Tabletop) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (30, 4)) * ACTION_HIGH
    ends = []
    for simulator in (env, Tabletop()):
        simulator.reset(11)
        for action in actions:
            simulator.step(action)
        ends.append(frozen(simulator))
    assert ends[0] == ends[1]


def test_every_scene_shows_four_separate_blocks(env: Tabletop) -> None:
    for seed in range(50):
        env.reset(seed)
        across = np.sort(env.blocks()[:, 1])
        assert np.diff(across).min() > BLOCK_LANE - 1e-6
        assert env.outcome() is None
        assert not env.over


def test_rendering_leaves_the_simulation_alone(env: Tabletop) -> None:
    env.reset(5)
    env.step([0.01, 0.02, -0.03, 1])
    before = frozen(env)
    small, large = env.render(), env.render(224)
    assert frozen(env) == before
    assert (small.shape, small.dtype, large.shape) == ((96, 96, 3), np.uint8, (224, 224, 3))


def test_boxes_lie_on_the_blocks_in_any_look(env: Tabletop) -> None:
    """Painted white on a black table without a lamp from the side, blocks are what is bright."""
    for seed in range(6):
        env.reset(seed)
        drawn = draw_look(np.random.default_rng(seed), env.blocks())
        env.look = replace(drawn, light=1.0, table=((0, 0, 0),) * 3, blocks=((1, 1, 1),) * 4, distractors=())
        picture = env.render(192)
        env.look = replace(env.look, blocks=((0, 0, 0),) * 4)
        changed = np.abs(picture.astype(int) - env.render(192)).sum(-1) > 60
        inside = np.zeros_like(changed)
        for left, top, right, bottom in boxes(env.blocks(), env.look):
            box = slice(int(192 * top), int(192 * bottom) + 1), slice(int(192 * left), int(192 * right) + 1)
            inside[box] = True
            assert left >= right or top >= bottom or changed[box].mean() > 0.4
        assert changed.any()
        assert not (changed & ~inside).any()
    env.look = PLAIN


def test_the_plain_look_is_restored(env: Tabletop) -> None:
    env.reset(3)
    plain = env.render(96)
    env.look = draw_look(np.random.default_rng(0), env.blocks())
    assert not np.array_equal(env.render(96), plain)
    env.look = PLAIN
    assert np.array_equal(env.render(96), plain)


def test_every_colour_is_visible(env: Tabletop) -> None:
    for seed in range(5):
        env.reset(seed)
        red, green, blue = env.render().astype(int).transpose(2, 0, 1)
        masks = {
            "red": (red > 120) & (green < 60) & (blue < 60),
            "green": (green > 80) & (red < 60) & (blue < 90),
            "blue": (blue > 120) & (red < 60) & (green < 90),
            "yellow": (red > 140) & (green > 120) & (blue < 60),
        }
        for colour, mask in masks.items():
            assert mask.sum() >= 30, (seed, colour)


def test_state_is_what_the_specification_says(env: Tabletop) -> None:
    env.reset(2)
    state = env.state()
    assert (state.shape, state.dtype) == ((4,), np.float32)
    assert state[3] == 1
    for _ in range(3):
        env.step([0, 0, 0, 1])
    assert env.state()[3] == pytest.approx(0, abs=0.02)
    env.step([0.02, 0, 0, 1])
    assert env.state()[0] - state[0] == pytest.approx(0.02, abs=0.002)
    for action in np.random.default_rng(1).choice([-1, 1], (60, 4)) * ACTION_HIGH:
        env.step(action)
        for value, dimension in zip(env.state(), STATE, strict=True):
            assert dimension.low <= value <= dimension.high, dimension.name


def test_actions_are_clipped_to_their_bounds(env: Tabletop) -> None:
    ends = []
    for action in ([9, -9, 9, 9], [0.03, -0.03, 0.03, 1]):
        env.reset(2)
        env.step(action)
        ends.append(frozen(env))
    assert ends[0] == ends[1]


def test_unusable_actions_are_refused(env: Tabletop) -> None:
    env.reset(2)
    with pytest.raises(ValueError, match=r"action must be 4 finite numbers, got shape \(3,\)"):
        env.step([0, 0, 0])
    with pytest.raises(ValueError, match="action must be 4 finite numbers"):
        env.step([0, float("nan"), 0, 0])


def test_an_unknown_goal_is_refused(env: Tabletop) -> None:
    with pytest.raises(ValueError, match=r"unknown goal \('lift', 'pink'\); valid: reach red, "):
        env.reset(0, Goal("lift", "pink"))


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds(env: Tabletop, task: str) -> None:
    lengths = []
    for seed in range(100, 112):
        env.reset(seed, Goal(task, COLOURS[seed % 4]))
        lengths.append(finish(env, env.goal))
        assert env.success, seed
        assert env.outcome() == env.goal.colour
    assert np.mean(lengths) < 20


@pytest.mark.parametrize("task", TASKS)
def test_a_wrong_block_is_a_failure(env: Tabletop, task: str) -> None:
    env.reset(6, Goal(task, "red"))
    finish(env, Goal(task, "yellow"))
    assert (env.outcome(), env.success, env.over) == ("yellow", False, True)
    for _ in range(40):
        env.step(expert_action(env, env.goal))
    assert env.happens(env.goal)
    assert (env.outcome(), env.success) == ("yellow", False)


def test_only_the_commanded_task_counts(env: Tabletop) -> None:
    env.reset(6, Goal("push", "red"))
    while not env.over and not env.happens(Goal("lift", "red")):
        env.step(expert_action(env, Goal("lift", "red")))
    assert env.happens(Goal("lift", "red"))
    assert env.outcome() is None


def test_an_idle_episode_runs_out(env: Tabletop) -> None:
    env.reset(0)
    for step in range(1, EPISODE_STEPS + 1):
        assert env.step([0, 0, 0, -1]) == (step == EPISODE_STEPS)
    assert (env.outcome(), env.success) == (None, False)


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_holds_still_when_done(env: Tabletop, task: str) -> None:
    goal = Goal(task, "green")
    env.reset(21, goal)
    after = finish(env, goal)
    while not ended(env, goal):
        env.step(expert_action(env, goal))
    # A push goes on to where no block begins.
    assert (env.steps > after) is (task == "push")
    gripper = -1 if task == "reach" else 1
    for _ in range(10):
        assert expert_action(env, goal).tolist() == [0, 0, 0, gripper]
        env.step(expert_action(env, goal))
    assert env.happens(goal)


def test_a_chunk_is_what_the_expert_really_does(env: Tabletop) -> None:
    for goal in GOALS:
        env.reset(8, GOALS[0])
        for _ in range(4):
            env.step(expert_action(env, GOALS[5]))
        before = env.snapshot()
        chunk = expert_chunk(env, goal, 8)
        after = env.snapshot()
        assert before.physics.tobytes() == after.physics.tobytes()
        assert before[2:] == after[2:]
        assert (chunk.shape, chunk.dtype) == ((8, 4), np.float32)
        done = []
        for _ in range(8):
            done.append(expert_action(env, goal))
            env.step(done[-1])
        assert np.array_equal(chunk, np.stack(done)), goal


def test_restoring_a_snapshot_undoes_an_outcome(env: Tabletop) -> None:
    env.reset(9, Goal("reach", "blue"))
    moment = env.snapshot()
    finish(env, env.goal)
    end = frozen(env)
    env.restore(moment)
    assert (env.outcome(), env.steps) == (None, 0)
    finish(env, env.goal)
    assert frozen(env) == end


def test_phrasings_are_distinct_and_held_out_ones_are_never_trained_on() -> None:
    trained = [phrase(goal, index) for goal in GOALS for index in range(len(PHRASES[goal.task]))]
    unseen = [held_out(goal, index) for goal in GOALS for index in range(len(HELD_OUT[goal.task]))]
    assert len(set(trained + unseen)) == len(trained) + len(unseen)
    for task in TASKS:
        assert len(PHRASES[task]) >= 5
        assert len(HELD_OUT[task]) >= 3
        words = {word for form in PHRASES[task] for word in form.split()}
        assert {word for form in HELD_OUT[task] for word in form.split()} <= words


def test_a_phrase_names_its_colour_and_wraps_round() -> None:
    goal = Goal("push", "yellow")
    assert phrase(goal, 0) == "push the yellow block forward"
    assert phrase(goal, len(PHRASES["push"])) == phrase(goal, 0)
    assert held_out(goal, 0) == "please push the yellow block forward"
