"""`python -m vla.training.hand_written`: what a `grounded` makes of sentences that no grammar drew.

`hand_written.json` has commands that were written by hand, in two lists, without sight of the phrasebook that
training draws from; what the first showed to be missing was put into the phrasebook, the second came later.
Each is read, and no robot moves: right is the task and the colour that its writer meant, or to hold still.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
import tyro

from vla import checkpoint
from vla.models.grounded import Model
from vla.tabletop.commands import COLOURS, TASKS
from vla_runtime.errors import SpecError

SENTENCES = Path(__file__).with_name("hand_written.json")
HELD = "hold"


class Sentence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command, its kind, and what it means: a task and a colour, or nothing to be done."""

    text: str
    kind: Literal[
        "plain", "synonym", "typo", "negation", "landmark", "stop", "forbidden", "vague", "absent", "other"
    ]
    goal: str | None
    # Whether the phrasebook was finished before anybody saw how this one is read.
    new: bool


def sentences() -> list[Sentence]:
    """Return all of them."""
    return msgspec.json.decode(SENTENCES.read_bytes(), type=list[Sentence])


@torch.inference_mode()
def read(folder: Path, said: list[Sentence]) -> list[str]:
    """Return what a checkpoint makes of sentences: a task and a colour, or `HELD`.

    Raises:
        SpecError: the checkpoint is incomplete, or not a `grounded`.
    """
    config, model = checkpoint.load(folder)
    if not isinstance(model, Model):
        raise SpecError(f"{folder} is a {config.architecture}: only grounded says what it reads")
    tokenizer = config.command_tokenizer()
    ids, mask = (
        torch.from_numpy(np.stack(part))
        for part in zip(*(tokenizer(each.text) for each in said), strict=True)
    )
    command = model.eval().read(ids, mask)
    chances = command.skills.softmax(-1)
    acts = command.rows[:, 2, 0] >= (config.safety.min_confidence or 0)  # as `command_confidence` is served
    skills, objects = (
        chances[:, 1 : 1 + len(TASKS)].argmax(-1),
        command.objects[:, 1 : 1 + len(COLOURS)].argmax(-1),
    )
    return [
        f"{TASKS[skill]} {COLOURS[colour]}" if act else HELD
        for act, skill, colour in zip(acts.tolist(), skills.tolist(), objects.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Reading:
    """Read sentences that were written by hand, and print how many are understood, by kind."""

    # Folder of the checkpoint.
    checkpoint: Path = Path("checkpoints/grounded")
    # Print each sentence that is misread as well.
    misread: bool = False


def _counted(said: list[Sentence], answers: list[str]) -> list[list[str]]:
    """Return for each kind how many are right, held though they mean something, or neither."""
    head = ["list", "kind", "sentences", "right", "held by mistake", "something else done"]
    rows = [head, ["---"] * len(head)]
    for new, kind in dict.fromkeys((each.new, each.kind) for each in said):
        pairs = [
            (each.goal or HELD, answer)
            for each, answer in zip(said, answers, strict=True)
            if (each.new, each.kind) == (new, kind)
        ]
        right = sum(meant == answer for meant, answer in pairs)
        held = sum(meant != answer == HELD for meant, answer in pairs)
        rows.append(
            [
                "second" if new else "first",
                kind,
                *map(str, (len(pairs), right, held, len(pairs) - right - held)),
            ]
        )
    return rows


def main() -> None:
    """Read as the command line says; exits with 1 and a message where the checkpoint is refused."""
    options = tyro.cli(Reading, prog="python -m vla.training.hand_written")
    said = sentences()
    try:
        answers = read(options.checkpoint, said)
    except SpecError as error:
        sys.exit(f"error: {error}")
    lines = [f"| {' | '.join(row)} |" for row in _counted(said, answers)]
    for each, answer in zip(said, answers, strict=True):
        if options.misread and answer != (each.goal or HELD):
            lines.append(f"{each.kind}: {each.text!r} means {each.goal or HELD}, read as {answer}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
