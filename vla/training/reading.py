"""Train how a `grounded` reads commands further, on sentences alone.

No sentence is said twice: each is drawn from the grammar of `vla.tabletop.language` for its step. What the
choices of skill and object stand for, the entries of two tables, stays as it is, and so does what follows.
"""

import numpy as np
import torch
from torch.nn import functional
from torch.optim import AdamW
from tqdm import tqdm

from vla.models.grounded import FAINTEST, Model
from vla.tabletop.commands import GOALS, TASKS
from vla.tabletop.labels import TARGETS
from vla.tabletop.language import draw
from vla.tabletop.vocabulary import Words, word
from vla.training.batches import READ, Batches
from vla.training.schedule import one_cycle

# Sentences in a batch, and the share of them that mean no goal.
BATCH, IMPOSSIBLE = 256, 0.4
# Share of a word's features that is dropped after each layer, so that no sentence is known by heart.
DROPOUT = 0.1
# Words in a batch, and how they are written.
WORDS = 128
SIGNS = ("{}", "{}", "{}", "{},", "{}.", "{}!", "{}?", "{}:", "{};", "({}", "{})", "{}-coloured")
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
        model.name_head,
    )
    trained = [parameter for part in parts for parameter in part.parameters()] + [model.named_word]
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
    meant = functional.cross_entropy(command.objects[can], 1 + OBJECT[wanted[can]])
    return skill + meant + _naming(batches, model, random)


def _naming(batches: Batches, model: Model, random: np.random.Generator) -> torch.Tensor:
    """Return the cross entropy of what new words name, each alone and written as in a sentence."""
    drawn = [word(Words(random, "train")) for _ in range(WORDS)]
    tokenizer = batches.config.command_tokenizer()
    signs = random.choice(SIGNS, WORDS)
    said = [tokenizer(str(sign).format(each)) for sign, (each, _) in zip(signs, drawn, strict=True)]
    ids, mask = (torch.from_numpy(np.stack(part)) for part in zip(*said, strict=True))
    longest = int(mask.sum(1).max())
    words, _ = model.text_encoder.spell(ids[:, :longest], mask[:, :longest])
    named = torch.tensor([1 + index for _, index in drawn])
    return functional.nll_loss(model.name(words[:, 0]).clamp_min(FAINTEST).log(), named)
