"""Teaches a pruned model to answer as the whole one did: distillation, Hinton et al. 2015, arXiv 1503.02531.

The whole model's answers are the labels, so any policy that can be exported can be tuned, without the data
and the losses that it was trained with.
"""

import dataclasses

import torch
from torch import Tensor, nn
from tqdm import tqdm

from export.batch import Batch
from export.flat import flattened
from export.prune import WEIGHTED, Pruning, pruned
from export.source import Observation, Source

BATCH = 32
LEARNING_RATE = 1e-3


def smaller(source: Source, pruning: Pruning, observations: list[Observation], steps: int) -> Source:
    """Return a pruned source, tuned for so many steps; zeros stay zeros.

    Raises:
        ExportError: there is nothing to prune, or the model fails.
    """
    model = pruned(source.model, pruning)
    found = dataclasses.replace(source, model=model, eager=None)
    tune(found, source, observations, steps)
    made = {"pruned": dataclasses.asdict(pruning), "tuned_steps": steps}
    return dataclasses.replace(found, provenance=source.provenance | made)


def tune(source: Source, teacher: Source, observations: list[Observation], steps: int) -> list[float]:
    """Tune a source's model in place; returns the loss of every step."""
    student, layout = flattened(source)
    whole, _ = flattened(teacher)
    everything = Batch.observed(source, layout, observations)
    kept = [(m.weight, m.weight != 0) for m in student.modules() if isinstance(m, WEIGHTED)]
    student.requires_grad_()
    optimiser = torch.optim.AdamW(student.parameters(), LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    random, losses = torch.Generator().manual_seed(0), list[float]()
    for _ in tqdm(range(steps), unit="step", desc="tune", disable=None):
        batch = _drawn(everything, random)
        with torch.no_grad():
            wanted = batch.run(whole)
        loss = distance(batch.run(student), wanted)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for weight, mask in kept:
                weight.mul_(mask)
        losses.append(loss.item())
    student.requires_grad_(requires_grad=False)
    return losses


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Return the mean squared difference of every output of numbers, as shares of its variance, added up.

    The chunk counts ten times.
    """
    total = torch.zeros(())
    for name, value in wanted.items():
        if value.is_floating_point():
            missed = (found[name] - value).square().mean() / (value.var() + 1e-3)
            total = total + (10 * missed if name in ("actions", "logits") else missed)
    return total


def _drawn(everything: Batch, random: torch.Generator) -> Batch:
    """Draw a batch, with noise of its own."""
    batch = everything.part(torch.randint(len(everything.ids), (BATCH,), generator=random))
    noise = torch.randn(batch.tensors["noise"].shape, generator=random)
    return dataclasses.replace(batch, tensors={**batch.tensors, "noise": noise})
