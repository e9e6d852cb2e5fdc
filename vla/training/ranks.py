"""Processes that train together, started by `torchrun` or `accelerate launch`, by Hugging Face accelerate.

Each computes its parts of the same batches; the gradients are summed, so that all have the same weights.
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """The place of a process among those of a run: alone, it is the first of one."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that validates, writes and prints."""
        return self.index == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up over the processes; every one of them gets the same."""
        if self.count == 1:
            return values
        return importlib.import_module("accelerate.utils").reduce(values, reduction="sum")

    def of_first(self, value: float) -> float:
        """Return the first process's number in each of them."""
        return float(self.sum(torch.tensor(value if self.first else 0.0, dtype=torch.float64)))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up gradients over the processes, in place; a parameter that none of them used keeps none."""
        if self.count == 1:
            return
        used = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
        gradients = [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
            for parameter in parameters
        ]
        sizes = [len(parameters), *(len(gradient) for gradient in gradients)]
        total = self.sum(torch.cat([used.to(gradients[0].device), *gradients]))
        used, *gradients = total.split(sizes)
        for parameter, gradient, uses in zip(parameters, gradients, used.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter) if uses else None


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes, if a launcher started any: by gloo on a CPU, by NCCL on GPUs, one each."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    state = importlib.import_module("accelerate").PartialState(cpu=device == "cpu")
    try:
        yield Ranks(state.process_index, state.num_processes)
    finally:
        state.destroy_process_group()
