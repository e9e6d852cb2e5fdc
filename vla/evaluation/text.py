"""`python -m vla.evaluation.text`: what an archived policy says of scenes, and whether it is true."""

import datetime
import json
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from archive.digest import digest
from vla.evaluation.policies import ArchivedPolicy
from vla.evaluation.render import BAD, GOOD, INK, MARGIN, PAPER, PICTURE, font
from vla.evaluation.report import Rate, table
from vla.provenance import commit
from vla.tabletop.collection import leave_to_demonstrations
from vla.tabletop.commands import COLOURS, GOALS, Goal, held_out
from vla.tabletop.expert import expert_action, standing_still
from vla.tabletop.looks import PLAIN, draw_look
from vla.tabletop.simulator import Tabletop
from vla.tabletop.texts import APART, KINDS, Scene, ask, beside, caption
from vla_client import ActionChunk, Observation, Policy
from vla_client.observation import encode
from vla_runtime.errors import RequestError, SpecError

# Facts of a caption, in the table's order.
FACTS = ("block told of", "block beside it", "side", "skill", "block acted on", "all of these")
_CAPTION = re.compile(r"the (\w+) block is (left|right) of the (\w+) one; I (\w+) the (\w+) block")
# The expert works less long than this before a scene is shown [control steps]; at every second one it lifts,
# so that blocks are held.
WORKED = 30
# A question is held where the hand is commanded this far at most [m], and the gripper as it is.
STILL = 0.003
SHOWN = 10


@dataclass(frozen=True)
class TextEvaluation:
    """Ask a policy about scenes that training never uses, in sentence patterns that it never uses."""

    # Archive (.mar) of a policy whose answers have `extras.text`.
    archive: Path = Path("model_store/vla.mar")
    # Scenes; each gets one command, and one question of every kind that has an answer there.
    scenes: int = 200
    # Seed of the first scene.
    first_seed: int = 6_000_000
    # Share of the scenes in a random look: light, colours, camera, distractors.
    varied: float = 0.5
    # The Markdown that is written, with a sheet of ten scenes and all answers as JSON beside it.
    report: Path = Path("runs/text.md")

    def __post_init__(self) -> None:
        if not 1 <= self.scenes <= 100_000:
            raise ValueError(f"scenes must be from 1 to 100000, got {self.scenes}")
        if not 0 <= self.varied <= 1:
            raise ValueError(f"varied must be from 0 to 1, got {self.varied}")
        leave_to_demonstrations(self.first_seed, self.scenes)


@dataclass(frozen=True)
class Said:
    """One answer of the policy to one command or question."""

    scene: int
    # A kind of question, or `caption`.
    kind: str
    sentence: str
    right: str
    said: str
    # Which of a caption's `FACTS` are true; of an answer, whether it is right.
    true: tuple[bool, ...]
    # The right values that `true` was judged by, for the baseline that always says the most frequent one.
    values: tuple[str, ...]
    # Whether the first action changes nothing, as a question calls for.
    still: bool


class Shown(NamedTuple):
    """A scene as the policy sees it, and the goal that it is commanded."""

    scene: Scene
    goal: Goal
    picture: NDArray[np.uint8]  # uint8 [96, 96, 3], RGB


def judge(text: str, scene: Scene, goal: Goal) -> tuple[bool, ...]:
    """Return which of a caption's `FACTS` are true; none of what is no caption."""
    match = _CAPTION.fullmatch(text)
    if match is None:
        return (False,) * len(FACTS)
    subject, side, other, task, target = match.groups()
    found = (
        subject == goal.colour,
        other == beside(scene, goal.colour)[0],
        _lies(scene, subject, side, other),
        task == goal.task,
        target == goal.colour,
    )
    return *found, all(found)


def _lies(scene: Scene, one: str, side: str, other: str) -> bool:
    """Whether one block lies on this side of the other in the picture."""
    if one not in COLOURS or other not in COLOURS:
        return False
    across = float(scene.blocks[COLOURS.index(one), 1] - scene.blocks[COLOURS.index(other), 1])
    return across <= -APART if side == "left" else across >= APART


def show(env: Tabletop, config: TextEvaluation, index: int) -> Shown:
    """Make a scene: the expert has worked at it for some steps."""
    random = np.random.default_rng([config.first_seed + index, 3])
    works = Goal("lift", COLOURS[index // 2 % len(COLOURS)]) if index % 2 else GOALS[index // 2 % len(GOALS)]
    env.reset(config.first_seed + index, works)
    for _ in range(int(random.integers(WORKED))):
        env.step(expert_action(env, works))
    env.look = draw_look(random, env.blocks()) if random.random() < config.varied else PLAIN
    goal = GOALS[int(random.integers(len(GOALS)))]
    return Shown(Scene(env.blocks(), env.state()), goal, env.render(96))


def listen(policy: Policy, shown: Shown, index: int) -> Iterator[Said]:
    """Give one command, and ask one question of each kind that has an answer in this scene."""
    random = np.random.default_rng([index, 4])
    scene, goal = shown.scene, shown.goal
    sentence = held_out(goal, int(random.integers(1 << 16)))
    answer, still = _answer(policy, shown, sentence)
    other, side = beside(scene, goal.colour)
    values = (goal.colour, other, side, goal.task, goal.colour, caption(scene, goal))
    right = caption(scene, goal)
    yield Said(index, "caption", sentence, right, answer, judge(answer, scene, goal), values, still)
    for kind in KINDS:
        asked = ask(random, kind, scene, "test")
        if asked:
            answer, still = _answer(policy, shown, asked.question)
            true = (answer == asked.answer,)
            yield Said(index, kind, asked.question, asked.answer, answer, true, (asked.answer,), still)


def _answer(policy: Policy, shown: Shown, sentence: str) -> tuple[str, bool]:
    """Return what the policy says, and whether it stands still."""
    state = shown.scene.state
    chunk = policy.infer(Observation(encode(shown.picture, "png"), sentence, state, seed=0))
    text = chunk.extras.get("text")
    if not isinstance(text, str):
        raise SpecError(f"{chunk.policy} says no text: train an rt2 with --text-tokens 16")
    return text, _stands_still(chunk, state)


def _stands_still(chunk: ActionChunk, state: NDArray[np.floating]) -> bool:
    first, still = chunk.actions[0], standing_still(state)
    return bool(np.abs(first[:3]).max() <= STILL and first[3] * still[3] > 0)


def evaluate(config: TextEvaluation) -> list[Said]:
    """Ask about every scene, one after the other.

    Raises:
        SpecError: the archive can't be served, or its policy says nothing.
    """
    with closing(Tabletop()) as env, ArchivedPolicy(config.archive) as policy:
        return [
            said for index in range(config.scenes) for said in listen(policy, show(env, config, index), index)
        ]


def markdown(config: TextEvaluation, found: Sequence[Said]) -> str:
    """Return the report: shares in percent, 95 % Wilson intervals in brackets."""
    captions = [said for said in found if said.kind == "caption"]
    asked = [said for said in found if said.kind != "caption"]
    questions = [
        _row(kind, [(said.true[0], said.values[0]) for said in asked if said.kind == kind]) for kind in KINDS
    ]
    facts = [
        _row(fact, [(said.true[place], said.values[place]) for said in captions])
        for place, fact in enumerate(FACTS)
    ]
    held = Rate(sum(said.still for said in asked), len(asked))
    moved = Rate(sum(not said.still for said in captions), len(captions))
    return "\n".join(
        [
            f"By `python -m vla.evaluation.text`, {datetime.date.today()}, commit {commit()[:10]}, archive "
            f"`{digest(config.archive)[:16]}`, {os.cpu_count()} cores of {platform.machine()}, in process. "
            f"{config.scenes} scenes of seeds from {config.first_seed} on, "
            f"{100 * config.varied:.0f} % of them in a random look; sentence patterns that training never "
            "uses. Percent, 95 % Wilson interval in brackets; beside it what always saying the most frequent "
            "right answer would give.",
            "",
            table([("question", "answers", "right", "most frequent answer"), *questions]),
            "",
            table([("fact of a caption", "captions", "true", "most frequent value"), *facts]),
            "",
            f"Questions to which the robot holds still: {held.percent()}. Commands to which it does not: "
            f"{moved.percent()} (some tasks are done already).",
            "",
        ]
    )


def _row(name: str, answers: Sequence[tuple[bool, str]]) -> tuple[str, ...]:
    common = Counter(value for _, value in answers).most_common(1)
    rate, baseline = Rate(sum(true for true, _ in answers), len(answers)), common[0][1] if common else 0
    return name, str(len(answers)), rate.percent(), f"{100 * Rate(baseline, len(answers)).value:.0f}"


def draw(config: TextEvaluation, found: Sequence[Said], path: Path) -> None:
    """Write a PNG of the first scenes: picture, what the policy was told and what it said; errors in red."""
    height, count = PICTURE + MARGIN, min(SHOWN, config.scenes)
    sheet = Image.new("RGB", (PICTURE + 1060, count * height + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    with closing(Tabletop()) as env:
        for index in range(count):
            top = MARGIN + index * height
            show(env, config, index)
            sheet.paste(Image.fromarray(env.render(2 * PICTURE)).reduce(2), (MARGIN, top))
            for line, said in enumerate(said for said in found if said.scene == index):
                left, y = PICTURE + 2 * MARGIN, top + 34 * line
                pen.text((left, y), said.sentence, INK, font(15))
                wrong = "" if all(said.true) else f"   (right: {said.right})"
                pen.text((left + 16, y + 16), f"{said.said}{wrong}", BAD if wrong else GOOD, font(15))
    sheet.save(path, optimize=True)


def main() -> int:
    """Run the command line; returns 1 and a message where that is refused."""
    try:
        config = tyro.cli(TextEvaluation, prog="python -m vla.evaluation.text")
        found = evaluate(config)
    except (RequestError, SpecError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    config.report.parent.mkdir(parents=True, exist_ok=True)
    sheet = config.report.with_suffix(".png")
    draw(config, found, sheet)
    text = markdown(config, found)
    config.report.write_text(f"{text}\n![Ten scenes and what was said]({sheet.name})\n")
    config.report.with_suffix(".json").write_text(json.dumps([asdict(said) for said in found], indent=1))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
