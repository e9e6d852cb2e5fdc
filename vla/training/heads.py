"""Train the heads of a `grounded` for actions, offsets and what is done further.

What a frame shows of each object is computed once, with the picture as it is and disturbed. Steps of the
heads alone cost far less than steps through tower and text encoder, so thousands can be taken. Reading,
finding and abstaining stay as they are. Where nothing is called for, or nothing of the scene is seen, they
learn to change nothing: a hold keeps their command to the gripper.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW
from tqdm import tqdm

from vla.models.grounded import Model
from vla.models.parts.finding import SEEN
from vla.models.parts.offsets import REACH, missed_offset
from vla.tabletop.commands import COLOURS, GOALS, TASKS
from vla.tabletop.expert import done
from vla.tabletop.labels import TARGETS
from vla.training.augmentation import disturb, foreign
from vla.training.batches import NONE, Batches
from vla.training.schedule import one_cycle
from vla_runtime.actions import normalise
from vla_runtime.preprocessing import normalise_pictures

# Frames that are looked at at once.
LOOKED_AT = 64
# The object that each goal means: int64 [G].
OBJECT = torch.from_numpy(TARGETS)
# The skill that each goal calls for, and last none, the first of the skills' entries: int64 [G + 1].
SKILL = torch.tensor([1 + TASKS.index(goal.task) for goal in GOALS] + [0])
# What a view is of: the frame, the frame disturbed, something else; and frames of each in a batch.
SHARES = {"plain": 56, "disturbed": 56, "foreign": 16}
# Weights of the actions' error, and of what is taken for done, beside the offset's error.
ACTIONS, DONE = 3.0, 0.1
# Goals of each frame of a batch.
COMMANDS = 4
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 3e-3, 0.01, 1.0


class Views(NamedTuple):
    """What V frames show of each of N objects, and what each of G goals calls for; the last one is none."""

    view: Tensor  # float16 [V, N, width]
    state: Tensor  # float32 [V, S], normalised
    offset: Tensor  # float32 [V, N, 3], from the hand to the objects, in units of `REACH`
    inside: Tensor  # bool [V, N], whether the picture shows the object
    actions: Tensor  # float32 [V, G, T, A], normalised
    done: Tensor  # float32 [V, G], 1 where the task is done

    @classmethod
    def of(
        cls, batches: Batches, model: Model, rows: np.ndarray, kind: str, random: torch.Generator
    ) -> "Views":
        """Look at frames `rows`, int64 [V], as a kind of `SHARES` has them."""
        data, config = batches.dataset, batches.config
        change = {"plain": lambda pictures, _: pictures, "disturbed": disturb, "foreign": foreign}[kind]
        seen = []
        for part in tqdm(torch.from_numpy(rows).split(LOOKED_AT), unit="batch", disable=None):
            pictures = torch.from_numpy(data.images[part.numpy()]).permute(0, 3, 1, 2).float() / 255
            images = normalise_pictures((255 * change(pictures, random)).unsqueeze(1), config.cameras)
            with torch.inference_mode():
                seen.append(model.see(images, len(COLOURS)).half())
        state, boxes = data.state[rows], torch.from_numpy(data.boxes[rows])
        still = batches.still(rows)[:, None]
        actions = torch.from_numpy(normalise(data.actions[rows], batches.space))
        ended = torch.from_numpy(done(data.actions[rows]).astype(np.float32))
        shown = kind != "foreign"
        return cls(
            torch.cat(seen),
            torch.from_numpy(normalise(state, config.state) if config.state else state[:, :0]),
            torch.from_numpy(data.blocks[rows] - state[:, None, :3]) / REACH,
            ((boxes[..., 2:] - boxes[..., :2]).amin(-1) > SEEN) & shown,
            torch.cat([actions if shown else still.expand_as(actions), still], dim=1),
            functional.pad(ended * shown, (0, 1)),
        )

    def loss(self, model: Model, frames: Tensor, goals: Tensor) -> Tensor:
        """Return the heads' loss on frames int64 [M] with a goal each, int64 [M]; none means any object."""
        objects = torch.where(goals == NONE, frames % len(COLOURS), OBJECT[goals % len(OBJECT)])
        to_do = model.skill_table[SKILL[goals]]
        decision = model.decide(self.view[frames, objects].float(), self.state[frames], to_do)
        inside = (self.inside[frames, objects] & (goals != NONE)).float()
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
    views = {kind: Views.of(batches, model.eval(), trained, kind, random) for kind in SHARES}
    validation = Views.of(batches, model, held, "plain", random)
    goals = torch.cat([torch.from_numpy(batches.goals[0]), torch.tensor([NONE])])
    before = _validate(validation, model, goals)
    heads = [
        parameter
        for head in (model.offset_head, model.action_head, model.done_head)
        for parameter in head.parameters()
    ]
    optimiser = AdamW(heads, weight_decay=WEIGHT_DECAY)
    for step in tqdm(range(steps), unit="step", desc="heads", disable=None):
        for group in optimiser.param_groups:
            group["lr"] = one_cycle(step / steps) * LEARNING_RATE
        losses = []
        for kind, share in SHARES.items():
            rows = torch.randint(len(trained), (share,), generator=random).repeat_interleave(COMMANDS)
            chosen = goals[torch.randint(len(goals), rows.shape, generator=random)]
            losses.append(share * views[kind].loss(model, rows, chosen))
        optimiser.zero_grad()
        (torch.stack(losses).sum() / sum(SHARES.values())).backward()
        torch.nn.utils.clip_grad_norm_(heads, CLIP_NORM)
        optimiser.step()
    return before, _validate(validation, model, goals)


@torch.no_grad()
def _validate(views: Views, model: Model, goals: Tensor) -> float:
    """Return the loss on all frames under every goal."""
    frames = torch.arange(len(views.state)).repeat_interleave(len(goals))
    return float(views.loss(model, frames, goals.repeat(len(views.state))))
