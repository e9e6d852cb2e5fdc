"""Texts to learn: captions to commands, and questions about the scene in place of some commands."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from vla.models import Batch
from vla.tabletop.commands import GOALS
from vla.tabletop.demonstrations import Demonstrations
from vla.tabletop.texts import KINDS, Asked, Scene, ask, caption, encode

# Share of the commands that a question takes the place of, and how often each kind is asked. How many blocks
# there are is always the same.
QUESTIONS = 0.4
OFTEN = np.array([0.26, 0.2, 0.16, 0.14, 0.2, 0.04])
# Which kind a number in [0, 1) stands for: kind i up to CHANCES[i].
CHANCES = np.cumsum(OFTEN) / OFTEN.sum()
# How often a scene may have no answer to a question before a command is given instead.
TRIES = 4

# There are few texts, and they come again and again.
_encoded = functools.cache(encode)

Tokenizer = Callable[[str], tuple[NDArray[np.int64], NDArray[np.int64]]]


def scene_of(dataset: Demonstrations, frame: int) -> Scene:
    """Return one frame's scene."""
    return Scene(dataset.blocks[frame], dataset.state[frame])


def with_texts(
    batch: Batch,
    scenes: list[Scene],
    goals: NDArray[np.int64],
    still: torch.Tensor,
    *,
    tokenizer: Tokenizer,
    random: np.random.Generator,
) -> Batch:
    """Ask questions in place of some commands, and add what is to be said to each.

    Args:
        batch: B frames, K commands each
        scenes: of the B frames
        goals: int64 [B, K], what the commands call for
        still: float32 [B, T, A], normalised, chunks that change nothing: what a question calls for
        tokenizer: turns a question into tokens and mask, int64 [L], padded
        random: what is drawn from
    """
    asked = {
        row: question
        for row in range(goals.size)
        if random.random() < QUESTIONS and (question := _ask(random, scenes[row // goals.shape[1]]))
    }
    texts = [
        asked[row].answer if row in asked else caption(scenes[row // goals.shape[1]], GOALS[goal])
        for row, goal in enumerate(goals.flat)
    ]
    rows = torch.tensor(sorted(asked), dtype=torch.int64)
    actions = batch.actions.clone()
    actions[rows] = batch.per_command(still)[rows]
    ids, mask = _replaced(batch, rows, [tokenizer(asked[row].question) for row in rows.tolist()])
    return batch._replace(
        input_ids=ids,
        attention_mask=mask,
        actions=actions,
        text=torch.tensor([_encoded(text) for text in texts]),
    )


def _ask(random: np.random.Generator, scene: Scene) -> Asked | None:
    for _ in range(TRIES):
        kind = KINDS[int(np.searchsorted(CHANCES, random.random(), side="right"))]
        if question := ask(random, kind, scene, "train"):
            return question
    return None


def _replaced(
    batch: Batch, rows: torch.Tensor, said: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the commands' tokens and mask with others in some rows, as long as the longest."""
    if not said:
        return batch.input_ids, batch.attention_mask
    ids, mask = (torch.from_numpy(np.stack(part)) for part in zip(*said, strict=True))
    whole, whole_mask = ids[:1].repeat(len(batch.actions), 1), mask[:1].repeat(len(batch.actions), 1)
    length = batch.input_ids.shape[1]
    whole[:, :length], whole_mask[:, :length] = batch.input_ids, batch.attention_mask
    whole_mask[:, length:] = 0
    whole[rows], whole_mask[rows] = ids, mask
    longest = int(whole_mask.sum(1).max())
    return whole[:, :longest], whole_mask[:, :longest]
