"""`python -m vla.evaluation.looking`: whether archived policies look at the block that is commanded.

The pointing game of Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop": a map hits where
its largest value lies in the box of what is meant. Played with the policy's own attention, and with occlusion
maps after Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", which need answers
alone: how much the actions change where a patch of the picture is grey.
"""

import datetime
import io
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from archive.read import unpack
from vla.evaluation.render import BAD, GOOD, INK, MARGIN, PAPER, font
from vla.evaluation.report import Rate, table
from vla.provenance import commit
from vla.tabletop.collection import leave_to_demonstrations
from vla.tabletop.commands import COLOURS, GOALS, Goal, held_out
from vla.tabletop.labels import boxes
from vla.tabletop.looks import PLAIN, draw_look
from vla.tabletop.simulator import ACTION_HIGH, ACTION_LOW, Tabletop
from vla_client.observation import encode
from vla_runtime.errors import RequestError, SpecError
from vla_runtime.explanation import EDGE, Box, overlay
from vla_runtime.policy import Answer, Policy

# Edge of the picture, of the grey patch, and from one patch to the next [pixels].
SIZE, PATCH, STEP = 96, 16, 8
GREY = 128
# What an action's numbers are divided by before they are compared: half their ranges.
STEP_SIZES = (ACTION_HIGH - ACTION_LOW) / 2
# A sheet shows so many scenes, each of two pictures this wide [pixels].
SHOWN, SHOWN_EDGE = 8, 192


@dataclass(frozen=True)
class Looking:
    """Play the pointing game in scenes that training never uses, with phrasings that it never uses."""

    # Archives (.mar) of policies of the tabletop.
    archives: tuple[Path, ...] = (Path("model_store/vla.mar"),)
    # Scenes; the twelve goals in turn.
    scenes: int = 60
    # Seed of the first scene.
    first_seed: int = 7_000_000
    # Whether light, colours, camera and distractors are drawn at random.
    varied: bool = False
    # The Markdown that is written, with a sheet of scenes a policy and all hits as JSON beside it.
    report: Path = Path("runs/looking.md")

    def __post_init__(self) -> None:
        if not 1 <= self.scenes <= 10_000:
            raise ValueError(f"scenes must be from 1 to 10000, got {self.scenes}")
        leave_to_demonstrations(self.first_seed, self.scenes)


class Shown(NamedTuple):
    """A scene as policies see it."""

    goal: Goal
    command: str
    picture: NDArray[np.uint8]  # uint8 [SIZE, SIZE, 3], RGB
    state: NDArray[np.float32]
    # float32 [4], left, top, right, bottom of the commanded block as shares of the picture's edge
    box: NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """What one policy looked at in one scene."""

    policy: str
    scene: int
    command: str
    # Whether the largest value lies in the commanded block's box; None: the policy gives no attention.
    attention: bool | None
    occlusion: bool
    # The box's share of the picture: what a point at random hits.
    chance: float


def show(env: Tabletop, config: Looking, index: int) -> Shown:
    """Make a scene at its beginning."""
    random = np.random.default_rng([config.first_seed + index, 5])
    goal = GOALS[index % len(GOALS)]
    env.reset(config.first_seed + index, goal)
    env.look = draw_look(random, env.blocks()) if config.varied else PLAIN
    command = held_out(goal, int(random.integers(1 << 16)))
    box = boxes(env.blocks()[COLOURS.index(goal.colour)], env.look)
    return Shown(goal, command, env.render(SIZE), env.state(), box)


def hits(heat: NDArray[np.floating], box: NDArray[np.floating]) -> bool:
    """Return whether the centre of the largest value of a map [h, w] lies in a box, shares of the edge."""
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    x, y = (column + 0.5) / heat.shape[1], (row + 0.5) / heat.shape[0]
    left, top, right, bottom = box
    return bool(left <= x <= right and top <= y <= bottom)


def look(policy: Policy, shown: Shown) -> tuple[NDArray[np.floating] | None, NDArray[np.floating]]:
    """Return a policy's attention [h, w], if it gives one, and its occlusion map [h, w].

    Raises:
        RequestError: the policy refuses the scene: it is none of the tabletop's.
    """
    begins = range(0, SIZE - PATCH + 1, STEP)
    pictures = [shown.picture, *(covered(shown.picture, top, left) for top in begins for left in begins)]
    answers = [_answer(one) for one in _infer(policy, shown, pictures)]
    actions = np.stack([answer.chunk.actions for answer in answers]) / STEP_SIZES
    changes = np.abs(actions[1:] - actions[0]).mean((1, 2)).reshape(len(begins), len(begins))
    attention = answers[0].chunk.attention
    return None if attention is None else attention.max(0), spread(changes)


def covered(picture: NDArray[np.uint8], top: int, left: int) -> NDArray[np.uint8]:
    """Return a picture uint8 [H, W, 3] with a grey patch."""
    changed = picture.copy()
    changed[top : top + PATCH, left : left + PATCH] = GREY
    return changed


def spread(changes: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return, for each square of STEP pixels, the mean of the patches that cover it: [h + 1, w + 1]."""
    height, width = changes.shape
    total, count = np.zeros((2, height + 1, width + 1))
    for down in range(PATCH // STEP):
        for right in range(PATCH // STEP):
            total[down : down + height, right : right + width] += changes
            count[down : down + height, right : right + width] += 1
    return total / count


def _infer(
    policy: Policy, shown: Shown, pictures: Sequence[NDArray[np.uint8]]
) -> Iterator[Answer | RequestError]:
    largest = policy.spec.artifact.buckets[-1]
    state = {"state": shown.state.astype(float).tolist()} if policy.spec.state else {}
    rows = [
        {"image": encode(picture, "png"), "command": shown.command, "seed": 0, **state}
        for picture in pictures
    ]
    for begin in range(0, len(rows), largest):
        yield from policy.infer(rows[begin : begin + largest], attention=True)


def _answer(answer: Answer | RequestError) -> Answer:
    if isinstance(answer, RequestError):
        raise answer
    return answer


def play(config: Looking, archive: Path, sheet: Path) -> list[Look]:
    """Play with one policy, and draw a sheet of the first scenes.

    Raises:
        SpecError: the archive can't be served.
        RequestError: the policy is not of the tabletop.
    """
    found, panels = list[Look](), list[Image.Image]()
    with tempfile.TemporaryDirectory() as folder, closing(Tabletop()) as env:
        policy = Policy.load(unpack(archive, Path(folder)))
        for index in tqdm(range(config.scenes), unit="scene", desc=policy.spec.name, disable=None):
            shown = show(env, config, index)
            attention, occlusion = look(policy, shown)
            found.append(
                Look(
                    policy.spec.name,
                    index,
                    shown.command,
                    None if attention is None else hits(attention, shown.box),
                    hits(occlusion, shown.box),
                    float(np.prod(shown.box[2:] - shown.box[:2])),
                )
            )
            if index < SHOWN:
                panels.append(_panel(shown, attention, occlusion, found[-1]))
    _draw(panels, sheet)
    return found


def _panel(
    shown: Shown, attention: NDArray[np.floating] | None, occlusion: NDArray[np.floating], found: Look
) -> Image.Image:
    """Draw a scene: the attention left, the occlusion map right, the commanded block framed."""
    panel = Image.new("RGB", (2 * SHOWN_EDGE + MARGIN, SHOWN_EDGE + 24), PAPER)
    pen = ImageDraw.Draw(panel)
    box = Box(0, *shown.box.tolist())
    for place, (heat, hit) in enumerate([(attention, found.attention), (occlusion, found.occlusion)]):
        left = place * (SHOWN_EDGE + MARGIN)
        if heat is None or hit is None:
            pen.text((left + 8, SHOWN_EDGE // 2), "gives no attention", INK, font(15))
            continue
        drawn = overlay([shown.picture.transpose(2, 0, 1)], heat[None].astype(np.float32), box)
        with Image.open(io.BytesIO(drawn)) as picture:
            panel.paste(picture.reduce(EDGE // SHOWN_EDGE), (left, 24))
        pen.rectangle(
            (left, 24, left + SHOWN_EDGE - 1, 23 + SHOWN_EDGE), outline=GOOD if hit else BAD, width=3
        )
    pen.text((2, 4), shown.command, INK, font(13))
    return panel


def _draw(panels: Sequence[Image.Image], path: Path) -> None:
    """Write the panels two abreast."""
    width, height = panels[0].size
    rows = -(-len(panels) // 2)
    sheet = Image.new("RGB", (2 * width + 3 * MARGIN, rows * (height + MARGIN) + MARGIN), PAPER)
    for index, panel in enumerate(panels):
        row, column = divmod(index, 2)
        sheet.paste(panel, (MARGIN + column * (width + MARGIN), MARGIN + row * (height + MARGIN)))
    sheet.save(path, optimize=True)


def markdown(config: Looking, found: Sequence[Look]) -> str:
    """Return the report: hits in percent, 95 % Wilson intervals in brackets."""
    rows = [("policy", "attention", "occlusion", "a point at random")]
    for policy in dict.fromkeys(one.policy for one in found):
        ours = [one for one in found if one.policy == policy]
        told = [one.attention for one in ours if one.attention is not None]
        chance = float(np.mean([one.chance for one in ours]))
        attention = _percent(told) if told else "gives none"
        rows.append(
            (f"`{policy}`", attention, _percent([one.occlusion for one in ours]), f"{100 * chance:.0f}")
        )
    looks = "random looks" if config.varied else "plain looks"
    said = (
        f"By `python -m vla.evaluation.looking`, {datetime.date.today()}, commit {commit()[:10]}, "
        f"{os.cpu_count()} cores of {platform.machine()}: {config.scenes} scenes of seeds from "
        f"{config.first_seed} on, {looks}, phrasings that training never uses. Percent of the scenes in "
        f"which the map's largest value lies on the commanded block, 95 % Wilson interval in brackets."
    )
    return f"{said}\n\n{table(rows)}\n"


def _percent(hit: Sequence[bool]) -> str:
    return Rate(sum(hit), len(hit)).percent()


def main() -> int:
    """Run the command line; returns 1 and a message where that is refused."""
    try:
        config = tyro.cli(Looking, prog="python -m vla.evaluation.looking", description=__doc__)
        config.report.parent.mkdir(parents=True, exist_ok=True)
        found, sheets = list[Look](), list[Path]()
        for archive in config.archives:
            sheets.append(config.report.with_name(f"{config.report.stem}_{archive.stem}.png"))
            found += play(config, archive, sheets[-1])
    except (RequestError, SpecError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = markdown(config, found)
    pictures = "\n".join(f"![{sheet.stem}]({sheet.name})" for sheet in sheets)
    config.report.write_text(f"{text}\n{pictures}\n")
    config.report.with_suffix(".json").write_text(json.dumps([asdict(one) for one in found], indent=1))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
