"""How far a policy's answers are from what was demonstrated, on frames that training does not see."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from vla.models import AnyModel, Batch
from vla.training.setup import AnyBatches
from vla_runtime.spec import DiscreteSpace

# Frames, and commands of each, in a validation.
VALIDATION = (256, 2)


class Measure(NamedTuple):
    """What a run is judged by while it lasts."""

    # What each number is of, and its unit.
    names: tuple[str, ...]
    units: tuple[str, ...]
    # The numbers, of a model on a device.
    error: Callable[[AnyModel, str], tuple[float, ...]]


def measure_of(batches: AnyBatches, frames: int, commands: int) -> Measure:
    """Judge by what is wrong on held-out episodes, with commands in held-out phrasings.

    Of actions, the mean absolute error of each dimension [action unit]; of symbols, the share of wrong ones
    at each place of the chunk.
    """
    space = batches.config.action
    if isinstance(space, DiscreteSpace):
        names = tuple(f"symbol {place + 1}" for place in range(space.horizon))

        def wrong(model: AnyModel, device: str) -> tuple[float, ...]:
            return symbol_error(model, device, batches.validation(frames, commands))

        return Measure(names, ("1",) * space.horizon, wrong)

    def missed(model: AnyModel, device: str) -> tuple[float, ...]:
        return action_error(batches, model, device, batches.validation(frames, commands))

    units = tuple(dimension.unit for dimension in batches.space.dimensions)
    return Measure(batches.space.names, units, missed)


@torch.inference_mode()
def action_error(batches: AnyBatches, model: AnyModel, device: str, batch: Batch) -> tuple[float, ...]:
    """Return the mean absolute error on a batch: one number a dimension [action unit]."""
    model.eval()
    batch = moved(batch, device)
    # Drawn as the server draws it: what a stochastic model answers is not what it answers to zeros.
    noise = torch.randn(batch.actions.shape, generator=torch.Generator().manual_seed(0)).to(device)
    missed = (answered(model, batch, noise, "actions") - batch.actions).abs()
    if batch.valid is None:
        error = missed.mean((0, 1))
    else:
        error = (missed * batch.valid).sum((0, 1)) / batch.valid.sum((0, 1)).clamp_min(1)
    return tuple((error.cpu() * torch.from_numpy(batches.space.scale)).tolist())


@torch.inference_mode()
def symbol_error(model: AnyModel, device: str, batch: Batch) -> tuple[float, ...]:
    """Return the share of wrong symbols on a batch: one number a place of the chunk.

    Raises:
        ValueError: the batch has no symbols.
    """
    if batch.symbols is None:
        raise ValueError("the batch has no symbols")
    model.eval()
    batch = moved(batch, device)
    logits = answered(model, batch, batch.actions[:, :0, :0], "logits")
    return tuple((logits.argmax(-1) != batch.symbols).float().mean(0).tolist())


def answered(model: AnyModel, batch: Batch, noise: torch.Tensor, output: str) -> torch.Tensor:
    """Return one output of `act` for each command of a batch, computed 256 at a time."""
    command, mask = model.encode_command(batch.input_ids, batch.attention_mask)
    answers = []
    for rows in torch.arange(len(command), device=command.device).split(256):
        frame = rows // batch.commands_per_frame
        answer = model.act(batch.images[frame], command[rows], mask[rows], batch.state[frame], noise[rows])
        answers.append(answer[output])
    return torch.cat(answers)


def moved(batch: Batch, device: str) -> Batch:
    """Return the batch on a device."""
    fields = {name: part.to(device) for name, part in batch._asdict().items() if part is not None}
    return batch._replace(**fields)


def short(error: tuple[float, ...]) -> str:
    """Write an error as a line has room for it."""
    return " ".join(f"{value:.4f}" for value in error)
