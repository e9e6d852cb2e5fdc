"""Train how a `grounded` reads commands further, on sentences alone.

No sentence is said twice: each is drawn from the grammar of `vla.tabletop.language` for its step. What the
choices of skill and object stand for, the entries of two tables, stays as it is, and so does what follows.
"""

import numpy as np
import torch
from torch.nn import functional
from torch.optim import AdamW
from tqdm import tqdm

from vla.models.grounded import Model
from vla.tabletop.commands import GOALS, TASKS
from vla.tabletop.labels import TARGETS
from vla.tabletop.language import draw
from vla.training.batches import READ, Batches
from vla.training.schedule import one_cycle

# Sentences in a batch, and the share of them that mean no goal.
BATCH, IMPOSSIBLE = 256, 0.4
# Share of a word's features that is dropped after each layer, so that no sentence is known by heart.
DROPOUT = 0.1
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 2e-3, 0.05, 1.0
# What each goal means: int64 [G], the entry of the skills, whose first one is none, and the object.
SKILL = torch.tensor([1 + TASKS.index(goal.task) for goal in GOALS])
OBJECT = torch.from_numpy(TARGETS)


def train(batches: Batches, model: Model, steps: int) -> None:
    """Take the steps, each on sentences of its own."""
    parts = (
        model.text_encoder,
        model.skill_pooling,
        model.object_pooling,
        model.skill_head,
        model.object_head,
    )
    trained = [parameter for part in parts for parameter in part.parameters()]
    optimiser = AdamW(trained, weight_decay=WEIGHT_DECAY)
    random = np.random.default_rng([batches.seed, READ])
    torch.manual_seed(batches.seed)  # what is dropped
    model.train()
    model.text_encoder.dropout = DROPOUT
    for step in tqdm(range(steps), unit="step", desc="reading", disable=None):
        for group in optimiser.param_groups:
            group["lr"] = one_cycle(step / steps) * LEARNING_RATE
        optimiser.zero_grad()
        _loss(batches, model, random).backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimiser.step()
    model.text_encoder.dropout = 0.0
    model.eval()


def _loss(batches: Batches, model: Model, random: np.random.Generator) -> torch.Tensor:
    """Return the cross entropy of the choices that are made of new sentences."""
    goals = random.choice(batches.goals[0], BATCH)
    possible = random.random(BATCH) >= IMPOSSIBLE
    tokenizer = batches.config.command_tokenizer()
    said = [
        tokenizer(draw(random, GOALS[goal] if can else None, "train", batches.sayable))
        for goal, can in zip(goals, possible, strict=True)
    ]
    ids, mask = (torch.from_numpy(np.stack(part)) for part in zip(*said, strict=True))
    longest = int(mask.sum(1).max())
    command = model.read(ids[:, :longest], mask[:, :longest])
    wanted, can = torch.from_numpy(goals), torch.from_numpy(possible)
    skill = functional.cross_entropy(command.skills, torch.where(can, SKILL[wanted], 0))
    return skill + functional.cross_entropy(command.objects[can], OBJECT[wanted[can]])
