"""What is measured at the workbench, with policies that know the answer and such that do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla.evaluation.tasks import TaskEvaluation, markdown
from vla.evaluation.workbench import ROWS, Moment, Result, begin, judged, planned, run
from vla.tabletop.collection import FIRST_SCENE
from vla.tabletop.simulator import ACTION
from vla.workbench.commands import NOTHING, phrasings
from vla.workbench.expert import expert_action
from vla.workbench.simulator import Workbench
from vla_client import ActionChunk, Observation, SafetyReport


class Knowing:
    """The expert, its plan with it; it acts for so many steps of a chain alone."""

    def __init__(self, env: Workbench, acts: int = 3) -> None:
        self._env, self._acts = env, acts
        self._needed: int | None = None

    def infer(self, observation: Observation) -> ActionChunk:
        steps = self._env.remaining()
        self._needed = self._needed or len(steps)
        acting = self._needed - len(steps) < self._acts
        action = expert_action(self._env, steps[0]) if acting else np.zeros(4, np.float32)
        plan = [{"name": str(step), "index": 0} for step in (*steps, NOTHING)]
        names = tuple(dimension.name for dimension in ACTION)
        extras = {"plan": plan}
        return ActionChunk(
            action[None], names, 10.0, None, SafetyReport("ok"), {}, "knowing", "1", "test", extras=extras
        )


@pytest.fixture(scope="module")
def env() -> Workbench:
    return Workbench()


def test_rows_are_what_their_names_say(env: Workbench) -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for index, row in enumerate(ROWS):
        for each in range(3):
            command = begin(env, row, each, 400_000 + 10 * index + each)
            assert len(env.remaining()) == row.steps, row.name
            assert command in phrasings(env.task, held_out=True)


@pytest.mark.parametrize("row", [ROWS[6], ROWS[9], ROWS[12]], ids=lambda row: row.name)
def test_a_task_is_pursued_to_its_end(env: Workbench, row) -> None:
    seen: list[ActionChunk | None] = []
    result = run(env, Knowing(env), row, (0, 410_000), seen.append)
    assert result.success
    assert result.done == result.needed == row.steps
    assert result.plans == result.firsts == result.requests == result.steps
    assert [moment.plan for moment in result.moments] == [moment.remaining for moment in result.moments]
    assert len(result.moments) >= row.steps
    assert len(seen) == result.steps + 1
    assert seen[-1] is None


def test_a_chain_that_stops_counts_the_steps_that_were_done(env: Workbench) -> None:
    row = next(row for row in ROWS if row.name == "put in the drawer")
    result = run(env, Knowing(env, acts=1), row, (0, 420_000))
    assert not result.success
    assert (result.needed, result.done) == (3, 1)
    assert result.steps == 150


def test_a_plan_is_right_until_its_step_is_clearly_done(env: Workbench) -> None:
    """Between success and no doubt, plans with the step and without it are both right."""
    row = next(row for row in ROWS if row.name == "open the drawer, then one more")
    begin(env, row, 0, 430_000)
    while len(env.remaining()) == 2:
        env.step(expert_action(env, env.remaining()[0]))
    both = [tuple(map(str, env.remaining(clearly=clearly))) for clearly in (False, True)]
    assert [len(plan) for plan in both] == [1, 2]
    moments = [Moment(0, plan, both[0], both[1]) for plan in (*both, ("open drawer",), ())]
    assert judged(moments)[:3] == (4, 2, 3)


def test_a_policy_without_a_plan_is_refused(env: Workbench) -> None:
    env.reset(1, ROWS[0].tasks[0])
    chunk = replace(
        Knowing(env).infer(Observation(np.zeros((8, 8, 3), np.uint8), "go", env.state())), extras={}
    )
    with pytest.raises(ValueError, match=r"answers no extras\.plan"):
        planned(chunk)


def test_the_report_counts_successes_and_steps() -> None:
    def result(row: str, needed: int, done: int) -> Result:
        return Result(row, "go", 1, needed, done, 20, 10, 5, 8, ())

    results = [result(row.name, row.steps, row.steps if each else 0) for row in ROWS for each in range(2)]
    text = markdown(TaskEvaluation(archive=Path("plans.mar")), results)
    assert "| put in the drawer " in text
    lines = [line for line in text.splitlines() if line.startswith(("| stack ", "| all of 3"))]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0][1:] == ["2", "50 [9, 91]", "50 [9, 91]", "-", "50", "80", "20"]
    assert cells[1][:3] == ["all of 3 steps", "3", "50 [19, 81]"]


def test_seeds_of_demonstrations_are_refused() -> None:
    with pytest.raises(ValueError, match="first_seed must leave the seeds"):
        TaskEvaluation(archive=Path("plans.mar"), first_seed=FIRST_SCENE)
    with pytest.raises(ValueError, match="needs one policy"):
        TaskEvaluation()
