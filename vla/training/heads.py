"""Train the heads of a `grounded` for actions, offsets and what is done further.

What a frame shows of each object is computed once, with the picture as it is and disturbed. Steps of the
heads alone cost far less than steps through tower and text encoder, so thousands can be taken. Reading,
finding and abstaining stay as they are.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW
from tqdm import tqdm

from vla.models.grounded import REACH, SEEN, Model, missed_offset
from vla.tabletop.commands import COLOURS, GOALS, TASKS
from vla.tabletop.expert import done
from vla.tabletop.labels import TARGETS
from vla.training.augmentation import disturb
from vla.training.batches import Batches
from vla.training.schedule import one_cycle
from vla_runtime.actions import normalise
from vla_runtime.preprocessing import normalise_pictures

# Frames that are looked at at once.
LOOKED_AT = 64
# What each goal means: int64 [G], the object, and the skill among those of the tabletop.
OBJECT = torch.from_numpy(TARGETS)
SKILL = torch.tensor([TASKS.index(goal.task) for goal in GOALS])
# Weights of the actions' error, and of what is taken for done, beside the offset's error.
ACTIONS, DONE = 3.0, 0.1
# Frames in a batch, half of them disturbed, and goals of each.
BATCH, COMMANDS = 128, 4
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 3e-3, 0.01, 1.0


class Views(NamedTuple):
    """What V frames show of each of N objects, and what each of G goals calls for."""

    view: Tensor  # float16 [V, N, width]
    state: Tensor  # float32 [V, S], normalised
    offset: Tensor  # float32 [V, N, 3], from the hand to the objects, in units of `REACH`
    inside: Tensor  # bool [V, N], whether the picture shows the object
    actions: Tensor  # float32 [V, G, T, A], normalised
    done: Tensor  # float32 [V, G], 1 where the task is done

    @classmethod
    def of(cls, batches: Batches, model: Model, rows: np.ndarray, random: torch.Generator | None) -> "Views":
        """Look at frames `rows`, int64 [V]; disturbed where there is a generator for it."""
        data, config = batches.dataset, batches.config
        seen = []
        for part in tqdm(torch.from_numpy(rows).split(LOOKED_AT), unit="batch", disable=None):
            pictures = torch.from_numpy(data.images[part.numpy()]).permute(0, 3, 1, 2).float() / 255
            pictures = pictures if random is None else disturb(pictures, random)
            images = normalise_pictures((255 * pictures).unsqueeze(1), config.cameras)
            with torch.inference_mode():
                seen.append(model.see(images, len(COLOURS)).half())
        state, boxes = data.state[rows], torch.from_numpy(data.boxes[rows])
        return cls(
            torch.cat(seen),
            torch.from_numpy(normalise(state, config.state) if config.state else state[:, :0]),
            torch.from_numpy(data.blocks[rows] - state[:, None, :3]) / REACH,
            (boxes[..., 2:] - boxes[..., :2]).amin(-1) > SEEN,
            torch.from_numpy(normalise(data.actions[rows], batches.space)),
            torch.from_numpy(done(data.actions[rows]).astype(np.float32)),
        )

    def loss(self, model: Model, frames: Tensor, goals: Tensor) -> Tensor:
        """Return the heads' loss on frames int64 [M] with a goal each, int64 [M]."""
        objects = OBJECT[goals]
        to_do = model.skill_table[1 + SKILL[goals]]
        decision = model.decide(self.view[frames, objects].float(), self.state[frames], to_do)
        inside = self.inside[frames, objects].float()
        off = missed_offset(decision.offset, self.offset[frames, objects])
        missed = functional.mse_loss(decision.actions, self.actions[frames, goals])
        ended = functional.binary_cross_entropy_with_logits(decision.done, self.done[frames, goals])
        return (off * inside).sum() / inside.sum().clamp_min(1) + ACTIONS * missed + DONE * ended


def train(batches: Batches, model: Model, steps: int) -> tuple[float, float]:
    """Take the steps, each on frames of all views alike; all else stays as it is.

    Returns:
        the loss on validation frames, before and after
    """
    random = torch.Generator().manual_seed(batches.seed)
    trained, held = batches.frames
    views = [Views.of(batches, model.eval(), trained, how) for how in (None, random)]
    validation = Views.of(batches, model, held, None)
    goals = torch.from_numpy(batches.goals[0])
    before = _validate(validation, model, goals)
    heads = [
        parameter
        for head in (model.offset_head, model.action_head, model.done_head)
        for parameter in head.parameters()
    ]
    optimiser = AdamW(heads, weight_decay=WEIGHT_DECAY)
    frames, share = len(views[0].state), BATCH // len(views)
    for step in tqdm(range(steps), unit="step", desc="heads", disable=None):
        for group in optimiser.param_groups:
            group["lr"] = one_cycle(step / steps) * LEARNING_RATE
        losses = []
        for view in views:
            rows = torch.randint(frames, (share,), generator=random).repeat_interleave(COMMANDS)
            chosen = goals[torch.randint(len(goals), rows.shape, generator=random)]
            losses.append(view.loss(model, rows, chosen))
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(heads, CLIP_NORM)
        optimiser.step()
    return before, _validate(validation, model, goals)


@torch.no_grad()
def _validate(views: Views, model: Model, goals: Tensor) -> float:
    """Return the loss on all frames under every goal."""
    frames = torch.arange(len(views.state)).repeat_interleave(len(goals))
    return float(views.loss(model, frames, goals.repeat(len(views.state))))
