"""Episodes: where they start, who acts in them, how they are recorded and judged."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vla.evaluation.report import Rate
from vla.learning.acting import Actor, Planner
from vla.tabletop.collection import Episode
from vla.tabletop.commands import COLOURS, GOALS, Goal, held_out, phrase
from vla.tabletop.expert import ended, expert_action, expert_chunk, holds
from vla.tabletop.labels import boxes, points
from vla.tabletop.simulator import WORKSPACE_HIGH, WORKSPACE_LOW, Tabletop

# Where a robot starts: at rest above the table, as demonstrations do; driven to a place near the table, with
# the fingers anywhere between open and closed and blocks in its way moved; or with another block than the
# commanded one between its fingers.
Start = Literal["rest", "elsewhere", "holding"]
# How high a place elsewhere is at most [m], and control steps that driving there takes.
ELSEWHERE_BELOW, ELSEWHERE_STEPS = 0.10, 10
# Control steps in which another block is grasped, at most, and until which it is raised.
GRASP_STEPS, RAISE_STEPS = 40, 2

# What answers an action, float32 [4] in physical units, in the simulator's present moment.
Act = Callable[[], NDArray[np.float32]]


def begin(env: Tabletop, seed: int, goal: Goal, start: Start) -> None:
    """Begin an episode of full length; it follows from the arguments alone.

    Raises:
        ValueError: an episode of reaching would be over with another block between the fingers.
    """
    if start == "holding" and goal.task == "reach":
        raise ValueError("a robot that holds another block has reached that: start elsewhere")
    random = np.random.default_rng([seed, 7])
    while True:
        env.reset(seed, goal)
        if start == "rest":
            return
        (_go_elsewhere if start == "elsewhere" else _grasp_another)(env, random)
        if env.outcome() is None:
            env.restore(env.snapshot()._replace(steps=0))
            return


def _go_elsewhere(env: Tabletop, random: np.random.Generator) -> None:
    """Drive the hand to a random place near the table."""
    place = random.uniform(WORKSPACE_LOW, (*WORKSPACE_HIGH[:2], ELSEWHERE_BELOW))
    fingers = random.uniform(-1, 1)
    for _ in range(ELSEWHERE_STEPS):
        env.step([*(place - env.hand()[:3]), fingers])


def _grasp_another(env: Tabletop, random: np.random.Generator) -> None:
    """Have the expert grasp another block, and raise it a little."""
    others = [colour for colour in COLOURS if colour != env.goal.colour]
    other = Goal("lift", others[random.integers(len(others))])
    for _ in range(GRASP_STEPS):
        if holds(env.hand(), env.block(other.colour)):
            break
        env.step(expert_action(env, other))
    for _ in range(random.integers(RAISE_STEPS + 1)):
        env.step(expert_action(env, other))


def mixture(env: Tabletop, actor: Actor | None, beta: float, random: np.random.Generator) -> Act:
    """Return who acts: at each step the expert with probability `beta`, else the policy.

    Of training phrasings, one is drawn for the episode. Without an `actor` the expert always acts.
    """
    command = phrase(env.goal, int(random.integers(1 << 16)))

    def act() -> NDArray[np.float32]:
        if actor is None or random.random() < beta:
            return expert_action(env, env.goal)
        return actor.chunk(env, command)[0]

    return act


def record(env: Tabletop, act: Act, *, image_size: int, horizon: int, every: int = 1) -> Episode:
    """Run an episode from here to its end; keep each `every`-th frame with the expert's labels for all goals.

    Whoever acts, labels are what the expert would do, as in Ross et al. 2011.
    """
    images, states, actions, blocks = [], [], [], []
    while not env.over and not ended(env, env.goal):
        if env.steps % every == 0:
            images.append(env.render(image_size))
            states.append(env.state())
            blocks.append(env.blocks())
            actions.append([expert_chunk(env, goal, horizon) for goal in GOALS])
        env.step(act())
    state = np.stack(states)
    return Episode(
        images=np.stack(images),
        state=state,
        actions=np.array(actions, np.float32),
        blocks=np.stack(blocks),
        boxes=boxes(np.stack(blocks)),
        hand=points(state[:, :3]),
        goal=np.full(len(state), GOALS.index(env.goal), np.int32),
        success=env.success,
    )


def shortened(episode: Episode, frames: int) -> Episode:
    """Return the first frames of an episode."""
    return episode._replace(
        **{name: part[:frames] for name, part in episode._asdict().items() if name != "success"}
    )


def succeeds(env: Tabletop, act: Act) -> bool:
    """Run the episode from here to its end; returns whether it is a success."""
    while not env.over:
        env.step(act())
    return env.success


def success(
    env: Tabletop,
    actor: Actor | Planner | None,
    goals: Sequence[Goal],
    scenes: Iterable[int],
    start: Start,
) -> Rate:
    """Run an episode in each scene, the goals in turn, in held-out phrasings; None: the expert acts."""
    results = []
    for index, seed in enumerate(scenes):
        goal = goals[index % len(goals)]
        begin(env, seed, goal, start)
        command = held_out(goal, index // len(goals))

        def act(goal: Goal = goal, command: str = command) -> NDArray[np.float32]:
            return actor.chunk(env, command)[0] if actor else expert_action(env, goal)

        results.append(succeeds(env, act))
    return Rate(sum(results), len(results))
