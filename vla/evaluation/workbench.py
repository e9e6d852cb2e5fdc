"""Episodes at the workbench: skills alone and chains of them, pursued to the end by a policy that plans."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vla.workbench.commands import NOTHING, TASKS, Task, kind, phrasings
from vla.workbench.expert import expert_action
from vla.workbench.simulator import STEP_LIMIT, Workbench
from vla_client import ActionChunk, Observation, Policy, PolicyError
from vla_client.observation import encode
from vla_runtime.errors import RequestError

PICTURE = 96


@dataclass(frozen=True)
class Row:
    """A row of the report: tasks of one kind, from scenes that need so many steps."""

    name: str
    tasks: tuple[Task, ...]
    # Steps that each task needs from its scene on.
    steps: int
    # Whether the drawer is open, and whether the expert has picked the block already.
    opened: bool = False
    held: bool = False


def _tasks(*kinds: str) -> tuple[Task, ...]:
    """Return the tasks whose aims are of these kinds; `last` is any that may end a task."""
    ends = ("reach", "pick", "push", "navigate")
    return tuple(
        task
        for task in TASKS
        if len(task) == len(kinds)
        and all(
            kind(aim) in (ends if each == "last" else (each,)) for aim, each in zip(task, kinds, strict=True)
        )
    )


ROWS = (
    *(Row(skill, _tasks(skill), 1) for skill in ("reach", "pick", "push", "navigate", "open")),
    *(
        Row(f"place, {where}", _tasks(where), 1, opened=True, held=True)
        for where in ("tray", "drawer", "stack")
    ),
    Row("put in the tray", _tasks("tray"), 2),
    Row("stack", _tasks("stack"), 2),
    Row("put in the open drawer", _tasks("drawer"), 2, opened=True),
    Row("open the drawer, then one more", _tasks("open", "last"), 2),
    Row("put in the drawer", _tasks("drawer"), 3),
    Row("put in the tray, then one more", _tasks("tray", "last"), 3),
    Row("stack, then one more", _tasks("stack", "last"), 3),
)


@dataclass(frozen=True)
class Moment:
    """One answer, and what was seen then."""

    step: int
    # The steps that the policy answers, and those that remain in truth; without what fills the plan.
    plan: tuple[str, ...]
    remaining: tuple[str, ...]
    # Those that remain until they are clearly done: a plan of these is as right.
    clearly: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What came of an episode."""

    row: str
    command: str
    seed: int
    # Steps that the task needs, and the most of them that were done at a moment.
    needed: int
    done: int
    # Control steps taken.
    steps: int
    # Requests, and of these those whose plan, and whose first step, were those of the scene.
    requests: int
    plans: int
    firsts: int
    # The answers whose plan is not that of the one before.
    moments: tuple[Moment, ...]
    # Code of the refusal that ended the episode; None: no request was refused.
    error: str | None = None

    @property
    def success(self) -> bool:
        """Whether the whole task was done."""
        return self.done == self.needed and self.error is None


def begin(env: Workbench, row: Row, index: int, seed: int) -> str:
    """Set the scene of a row's episode; returns the command, in a phrasing that training never uses."""
    task = row.tasks[index % len(row.tasks)]
    env.reset(seed, task, opened=row.opened)
    while row.held and env.remaining()[0].skill != "place":
        env.step(expert_action(env, env.remaining()[0]))
    return phrasings(task, held_out=True)[0]


def run(
    env: Workbench,
    policy: Policy,
    row: Row,
    place: tuple[int, int],
    on_step: Callable[[ActionChunk | None], None] | None = None,
) -> Result:
    """Let a policy pursue a task to its end, observing at every control step.

    `place` is the episode's index in its row, and its scene's seed. `on_step` is called with every answer
    before it is acted on, and with None at the end.

    Raises:
        PolicyUnavailable, InvalidAnswer: the evaluation can't go on.
    """
    command, seed, answers = begin(env, row, *place), place[1], list[Moment]()
    begun, done, error = env.steps, 0, None
    while (remaining := env.remaining()) and env.steps - begun < STEP_LIMIT * row.steps:
        done = max(done, row.steps - len(remaining))
        picture = encode(env.render(PICTURE), "png")
        try:
            chunk = policy.infer(Observation(picture, command, env.state(), seed=seed))
        except (PolicyError, RequestError) as refusal:
            error = refusal.code
            break
        clearly = tuple(map(str, env.remaining(clearly=True)))
        answers.append(Moment(env.steps - begun, planned(chunk), tuple(map(str, remaining)), clearly))
        if on_step:
            on_step(chunk)
        env.step(chunk.actions[0])
    if on_step:
        on_step(None)
    done = done if env.remaining() else row.steps
    return Result(row.name, command, seed, row.steps, done, env.steps - begun, *judged(answers), error)


def judged(answers: Sequence[Moment]) -> tuple[int, int, int, tuple[Moment, ...]]:
    """Return how many answers, right plans and right first steps there were, and where the plan changed."""
    changed = [
        one for last, one in zip([None, *answers], answers, strict=False) if not last or last.plan != one.plan
    ]
    plans = sum(one.plan in (one.remaining, one.clearly) for one in answers)
    firsts = sum(one.plan[:1] in (one.remaining[:1], one.clearly[:1]) for one in answers)
    return len(answers), plans, firsts, tuple(changed)


def planned(chunk: ActionChunk) -> tuple[str, ...]:
    """Return the steps of an answer's plan, without those that mean that nothing remains.

    Raises:
        ValueError: the policy answers no plan.
    """
    if "plan" not in chunk.extras:
        raise ValueError(
            f"the policy {chunk.policy} answers no extras.plan: train hierarchical on the workbench"
        )
    names = [step["name"] for step in chunk.extras["plan"]]
    nothing = str(NOTHING)
    return tuple(names[: names.index(nothing)] if nothing in names else names)
