"""From demonstrations at the workbench to batches: frames, several tasks of each, and what these need."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from vla.checkpoint import Config, Frame
from vla.models import Batch
from vla.training.batches import SPLIT, TRAIN, VALIDATE
from vla.workbench.commands import SKILLS, STEPS, TASKS, Step, phrasings
from vla.workbench.demonstrations import DESCRIPTION, Demonstrations
from vla.workbench.simulator import THINGS
from vla_runtime.actions import normalise
from vla_runtime.errors import SpecError
from vla_runtime.preprocessing import normalise_pictures
from vla_runtime.spec import ContinuousSpace, DiscreteSpace

# The one architecture that learns which steps remain.
ARCHITECTURE = "hierarchical"
# What its default preset has more of here: more is to be seen than on the tabletop, and to be done with it.
SIZES = {"keypoints": 16, "hidden": 256}


def _thing(step: Step) -> int:
    """Return which of `THINGS` a step is about; after them comes the hand, for none."""
    if step.skill == "open":
        return THINGS.index("handle")
    return THINGS.index(step.target) if step.target else len(THINGS)


# The skill of each step, and the thing: int64 [steps].
SKILL = np.array([SKILLS.index(step.skill) for step in STEPS])
THING = np.array([_thing(step) for step in STEPS])


def model_values(preset: str = "default") -> dict[str, Any]:
    """Return the values of the `Config` that name what the demonstrations show, and the preset's sizes."""
    sizes = SIZES if preset == "default" else {}
    return {"skills": SKILLS, "steps": tuple(map(str, STEPS)), **sizes}


@dataclass(frozen=True)
class WorkbenchBatches:
    """Draws batches; the same `(seed, step)` always gives the same one."""

    dataset: Demonstrations
    config: Config
    seed: int
    # Share of the episodes held out for validation, at least one episode.
    validation_share: float
    # The policy does not learn to abstain.
    selective = False

    def __post_init__(self) -> None:
        if self.config.architecture != ARCHITECTURE:
            raise SpecError(f"{DESCRIPTION}: the workbench is for the architecture {ARCHITECTURE} alone")
        if self.dataset.description.episodes < 2:
            raise SpecError("the data set needs two episodes at least: one to train on, one to validate on")

    @property
    def space(self) -> ContinuousSpace:
        """The policy's action space."""
        if isinstance(self.config.action, DiscreteSpace):
            raise SpecError("the demonstrations have continuous actions, the policy discrete ones")
        return self.config.action

    @cached_property
    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the training frames and of the validation frames; no episode has both: int64 [M]."""
        episodes = self.dataset.description.episodes
        order = np.random.default_rng([self.seed, SPLIT]).permutation(episodes)
        held = np.isin(self.dataset.episode, order[: max(1, round(episodes * self.validation_share))])
        return np.flatnonzero(~held), np.flatnonzero(held)

    def train(self, step: int, frames: int, commands: int) -> Batch:
        """Draw `frames` training frames with `commands` tasks each, or with all that they have, if fewer."""
        random = np.random.default_rng([self.seed, TRAIN, step])
        return self._batch(random, random.choice(self.frames[0], frames), commands, held_out=False)

    def validation(self, frames: int, commands: int) -> Batch:
        """Draw validation frames, the same ones every time, with tasks in held-out phrasings."""
        random = np.random.default_rng([self.seed, VALIDATE])
        return self._batch(random, random.choice(self.frames[1], frames), commands, held_out=True)

    def example(self) -> Frame:
        """Return the first validation frame, commanded in a held-out phrasing what was pursued."""
        row = int(self.frames[1][0])
        task = TASKS[int(self.dataset.task[row, 0])]
        command = phrasings(task, held_out=True)[0]
        return Frame(self.dataset.images[row][None], command, np.array(self.dataset.state[row]))

    @cached_property
    def _phrases(self) -> dict[bool, list[list[tuple[np.ndarray, np.ndarray]]]]:
        """Tokens and mask of every task's phrasings, the held-out ones and those of training."""
        tokenizer = self.config.command_tokenizer()
        return {
            held_out: [[tokenizer(form) for form in phrasings(task, held_out=held_out)] for task in TASKS]
            for held_out in (False, True)
        }

    def _batch(
        self, random: np.random.Generator, rows: np.ndarray, commands: int, *, held_out: bool
    ) -> Batch:
        """Gather frames `rows`, int64 [B], and what is to be learned from them."""
        data = self.dataset
        columns = np.arange(min(commands, data.description.labelled))
        tasks = data.task[rows[:, None], columns].flatten()  # [B * K]
        plan = data.plan[rows[:, None], columns].reshape(len(tasks), -1)
        actions = data.actions[rows[:, None], columns].reshape(-1, *data.actions.shape[2:])
        said = [
            forms[random.integers(len(forms))] for forms in (self._phrases[held_out][task] for task in tasks)
        ]
        ids, mask = (torch.from_numpy(np.stack(part)) for part in zip(*said, strict=True))  # [B * K, L]
        longest = int(mask.sum(1).max())
        state = data.state[rows]
        hand = torch.from_numpy(state[:, :3])
        count, things = len(rows), len(THINGS) + 1
        pictures = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2).unsqueeze(1)  # [B, 1, 3, H, W]
        return Batch(
            images=normalise_pictures(pictures, self.config.cameras),
            state=torch.from_numpy(
                normalise(state, self.config.state) if self.config.state else state[:, :0]
            ),
            input_ids=ids[:, :longest],
            attention_mask=mask[:, :longest],
            actions=torch.from_numpy(normalise(actions, self.space)),
            skill=torch.from_numpy(SKILL[plan[:, 0]]),
            target=torch.from_numpy(THING[plan[:, 0]]),
            objects=torch.cat([torch.from_numpy(data.things[rows]), hand[:, None]], dim=1),
            boxes=torch.zeros(count, 1, things, 4),
            hand=hand,
            hand_points=torch.zeros(count, 1, 2),
            done=torch.from_numpy(plan[:, 0] == len(STEPS) - 1),
            possible=torch.ones(len(tasks), dtype=torch.bool),
            shown=torch.ones(count, dtype=torch.bool),
            plan=torch.from_numpy(plan),
        )
