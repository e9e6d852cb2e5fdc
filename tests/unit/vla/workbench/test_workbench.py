"""The workbench: scenes, what counts as done, what remains, and the expert of every skill."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from vla.workbench.commands import BLOCKS, LONGEST, NOTHING, STEPS, TASKS, ZONES, Aim, Step, Task, phrasings
from vla.workbench.expert import RELEASE, RELEASE_ON_BLOCK, expert_action, expert_chunk
from vla.workbench.simulator import STEP_LIMIT, Workbench

SCENES = 50
PUT = (Aim("put", "red", "tray"),)


@pytest.fixture(scope="module")
def env() -> Workbench:
    return Workbench()


def run(env: Workbench, seed: int, task: Task, *, opened: bool = False) -> bool:
    """Let the expert do a task; returns whether it is done in time."""
    env.reset(seed, task, opened=opened)
    while (steps := env.remaining()) and env.steps < STEP_LIMIT * len(task) * 2:
        env.step(expert_action(env, steps[0]))
    return not env.remaining()


def hold(env: Workbench, seed: int, task: Task, *, opened: bool = False) -> None:
    """Let the expert go on until nothing but to place the block remains."""
    env.reset(seed, task, opened=opened)
    while env.remaining()[0].skill != "place":
        env.step(expert_action(env, env.remaining()[0]))


@pytest.mark.parametrize(
    "targets",
    [
        [Aim("reach", block) for block in BLOCKS],
        [Aim("pick", block) for block in BLOCKS],
        [Aim("push", block) for block in BLOCKS],
        [Aim("navigate", zone) for zone in ZONES],
        [Aim("open", "drawer")],
    ],
    ids=lambda targets: targets[0].verb,
)
def test_the_expert_has_every_skill(env: Workbench, targets: list[Aim]) -> None:
    chosen = itertools.cycle(targets)
    done = [run(env, 7_000 + seed, (next(chosen),)) for seed in range(SCENES)]
    assert np.mean(done) >= 0.95


@pytest.mark.parametrize("place", ["tray", "drawer", "block"])
def test_the_expert_places_what_it_holds(env: Workbench, place: str) -> None:
    done = []
    for seed in range(SCENES):
        block, other = BLOCKS[seed % 3], BLOCKS[(seed + 1) % 3]
        hold(env, 8_000 + seed, (Aim("put", block, other if place == "block" else place),), opened=True)
        steps = 0
        while (left := env.remaining()) and steps < STEP_LIMIT:
            env.step(expert_action(env, left[0]))
            steps += 1
        done.append(not env.remaining())
    assert np.mean(done) >= 0.95


@pytest.mark.parametrize("place", ["tray", "drawer", "green"])
def test_a_held_block_is_let_go_wherever_it_then_lies_well(env: Workbench, place: str) -> None:
    """Beside the middle of its place and above it, on every side."""
    aim, step = Aim("put", "red", place), Step("place", place)
    radius, height = RELEASE.get(place, RELEASE_ON_BLOCK)
    assert radius >= 0.015
    released = []
    for angle in np.arange(8) * np.pi / 4:
        hold(env, 31, (aim,), opened=True)
        above = (0.05 if place == "green" else 0) + 0.8 * height
        beside = 0.9 * radius * np.array([np.cos(angle), np.sin(angle)])
        carry(env, "red", np.add(env.where(place), (*beside, above)))
        released.append(expert_action(env, step)[3])
        for _ in range(8):
            env.step(expert_action(env, step))
        assert env.achieved(aim), angle
    assert released == [-1] * 8


def carry(env: Workbench, block: str, point: np.ndarray) -> None:
    """Carry the held block to float [3] [m]: up, across, down."""
    for axes, above in (((0, 0, 1), 0.1), ((1, 1, 0), 0.1), ((0, 0, 1), 0)):
        for _ in range(30):
            away = (np.add(point, (0, 0, above)) - env.block(block)) * axes
            env.step((*np.clip(0.5 * away, -0.015, 0.015), 1))
    assert np.linalg.norm(point - env.block(block)) < 0.004


@pytest.mark.parametrize(
    ("aim", "further"),
    [
        (Aim("reach", "red"), lambda env: env.hand()[2] - env.block("red")[2] < 0.027),
        (Aim("pick", "red"), lambda env: env.block("red")[2] > 0.085),
        (Aim("push", "red"), lambda env: env.block("red")[0] > 0.155),
        (Aim("navigate", "white"), lambda env: env.hand()[2] < 0.075),
        (Aim("open", "drawer"), lambda env: env.opening() >= 0.09),
    ],
    ids=lambda value: value.verb if isinstance(value, Aim) else "",
)
def test_the_expert_goes_on_until_a_step_is_clearly_done(
    env: Workbench, aim: Aim, further: Callable[[Workbench], bool]
) -> None:
    step, between = Step(aim.verb, aim.thing), 0
    for seed in range(5):
        env.reset(40_000 + seed, (aim,))
        while steps := env.remaining(clearly=True):
            assert steps == (step,)
            action = expert_action(env, step)
            assert action[:3].any()
            between += not env.remaining()
            env.step(action)
            assert env.steps < STEP_LIMIT
        assert further(env)
        assert env.remaining() == ()
        assert not expert_action(env, step)[:3].any()
    assert between >= 4


@pytest.mark.parametrize("length", [2, LONGEST])
def test_the_expert_does_chains(env: Workbench, length: int) -> None:
    done = []
    for seed in range(SCENES):
        task = TASKS[(7 * seed) % len(TASKS)]
        env.reset(9_000 + seed, task)
        if len(env.remaining()) == length:
            done.append(run(env, 9_000 + seed, task))
    assert len(done) > 5
    assert np.mean(done) >= 0.95


@pytest.mark.slow
def test_the_expert_does_every_task(env: Workbench) -> None:
    done = [run(env, 20_000 + seed, task) for task in TASKS for seed in range(10)]
    assert np.mean(done) >= 0.98


def test_a_block_counts_as_placed_when_it_lies_inside_and_is_let_go(env: Workbench) -> None:
    hold(env, 1, PUT)
    seen = []
    while not env.achieved(PUT[0]):
        x, y, _ = np.subtract(env.block("red"), env.where("tray"))
        if max(abs(x), abs(y)) < 0.03 and env.held():
            seen.append(env.achieved(PUT[0]))
        env.step(expert_action(env, Step("place", "tray")))
    assert seen
    assert not any(seen)
    for _ in range(5):
        env.step((0, 0, 0.03, -1))
    assert env.achieved(PUT[0])
    assert abs(env.block("red")[2] - env.where("tray")[2]) < 0.003


def test_a_stack_stands_by_itself(env: Workbench) -> None:
    task = (Aim("put", "blue", "green"),)
    assert run(env, 5, task)
    for _ in range(10):
        env.step((0, 0, 0.03, -1))
    assert env.achieved(task[0])
    assert env.block("blue")[2] - env.block("green")[2] == pytest.approx(0.05, abs=0.003)


def test_what_lies_in_the_drawer_moves_with_it(env: Workbench) -> None:
    task = (Aim("put", "green", "drawer"),)
    assert run(env, 3, task)
    assert env.block("green")[2] < 0.04
    shut = env.where("handle")[0] - env.opening()
    before = env.block("green")[0]
    for _ in range(4):
        env.step((0.03, 0, 0.03, -1))
    while env.hand()[2] > 0.02:
        x, y, _ = env.where("handle")
        hand = env.hand()
        env.step((x + 0.04 - hand[0], y - hand[1], -0.03 if abs(x + 0.04 - hand[0]) < 0.01 else 0, 1))
    for _ in range(6):
        env.step((-0.02, 0, 0, 1))
    assert env.where("handle")[0] - shut < 0.05
    assert before - env.block("green")[0] > 0.02


def test_remaining_steps_follow_the_scene(env: Workbench) -> None:
    task = (Aim("put", "red", "drawer"),)
    opening, picking, placing = Step("open", "drawer"), Step("pick", "red"), Step("place", "drawer")
    env.reset(2, task)
    assert env.remaining() == (opening, picking, placing)
    env.reset(2, task, opened=True)
    assert env.remaining() == (picking, placing)
    hold(env, 2, task)
    assert env.remaining() == (placing,)
    env.step((0, 0, 0, -1))
    env.step((0, 0, 0, -1))
    assert env.remaining() == (picking, placing), "a block that was dropped has to be picked again"


def test_a_chain_begins_with_its_first_aim(env: Workbench) -> None:
    task = (Aim("put", "red", "green"), Aim("push", "blue"))
    env.reset(4, task)
    assert [str(step) for step in env.remaining()] == [
        "pick red block",
        "place on green block",
        "push blue block",
    ]
    assert all(len(env.remaining(each)) <= LONGEST for each in TASKS)


def test_scenes_follow_from_their_seed(env: Workbench) -> None:
    env.reset(11, TASKS[0])
    first, picture = env.things(), env.render()
    env.reset(12, TASKS[0])
    assert not np.array_equal(env.things(), first)
    env.reset(11, TASKS[9])
    assert np.array_equal(env.things(), first)
    assert np.array_equal(env.render(), picture)


def test_zones_are_seen_where_they_are(env: Workbench) -> None:
    """The zones' place is changed in the compiled model, which must draw it."""
    changed = 0
    for seed in range(6):
        env.reset(seed, TASKS[0])
        picture = env.render(96).astype(int)
        violet = (picture[..., 0] > picture[..., 1] + 50) & (picture[..., 2] > picture[..., 1] + 50)
        if violet.sum() < 10:  # behind the hand
            continue
        changed += 1
        row, column = np.argwhere(violet).mean(0)
        x, y, _ = env.where("purple")
        assert column == pytest.approx(48 + 48 * y / (0.279 + (0.11 + x) * -0.25), abs=8)
        assert row < 60
    assert changed >= 3


def test_a_moment_is_restored_bit_for_bit(env: Workbench) -> None:
    env.reset(6, PUT)
    for _ in range(4):
        env.step(expert_action(env, Step("pick", "red")))
    before = env.snapshot()
    chunk = expert_chunk(env, Step("pick", "red"), 8)
    assert env.snapshot().physics.tobytes() == before.physics.tobytes()
    assert chunk.shape == (8, 4)
    assert not (chunk == chunk[0]).all()


def test_an_unknown_task_is_refused(env: Workbench) -> None:
    with pytest.raises(ValueError, match="unknown task"):
        env.reset(0, (Aim("put", "red", "red"),))


def test_labels_and_sentences_are_distinct() -> None:
    labels = [str(step) for step in STEPS]
    assert len(set(labels)) == len(labels)
    assert labels[-1] == str(NOTHING) == "nothing more"
    trained = [sentence for task in TASKS for sentence in phrasings(task)]
    held = [sentence for task in TASKS for sentence in phrasings(task, held_out=True)]
    assert len(set(trained)) == len(trained)
    assert len(set(held)) == len(held)
    assert not set(trained) & set(held)
