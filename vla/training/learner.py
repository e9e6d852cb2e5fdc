"""One optimiser step: gradients of a batch's parts, in the precision wanted, and the average of weights."""

from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from torch import Tensor
from torch.amp.autocast_mode import autocast
from torch.amp.grad_scaler import GradScaler
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vla.models import AnyModel, Batch
from vla.training.ranks import Ranks
from vla.training.settings import Settings
from vla.training.validation import moved

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Learner:
    """A model that is trained, and all that changes with it from step to step."""

    def __init__(self, settings: Settings, model: AnyModel, ranks: Ranks) -> None:
        """Begin with the model's weights.

        Raises:
            ValueError: a batch can't be divided alike among the processes and their parts.
        """
        self.settings, self.model, self.ranks = settings, model, ranks
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = AdamW(self.trained, weight_decay=settings.weight_decay)
        self.parts = ranks.count * settings.accumulate
        if settings.batch % self.parts:
            raise ValueError(
                f"batch must be a multiple of {self.parts}, its parts ({ranks.count} processes, "
                f"accumulate {settings.accumulate}), got {settings.batch}"
            )
        self.kind = torch.device(settings.device).type
        # Gradients that are not finite, in its first steps for instance, are left out and halve the scale.
        self.scaler = GradScaler(self.kind, enabled=settings.precision == "fp16")
        self.average = AveragedModel(model, multi_avg_fn=_averaging(settings.ema)) if settings.ema else None

    @property
    def result(self) -> AnyModel:
        """The model that is validated and written: of the averaged weights, where they are averaged."""
        return cast("AnyModel", self.average.module) if self.average else self.model

    def step(
        self, batch: Batch, step: int, rate: float, mix: Callable[[Batch], Batch]
    ) -> tuple[float, dict[str, float]]:
        """Make one optimiser step on a batch.

        Args:
            batch: of all processes, on the CPU
            step: its number; what is random in it follows from the number
            rate: the learning rate
            mix: changes the targets of each part

        Returns:
            the loss and its terms, means over the batch
        """
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        losses = self._gradients(batch, step, mix)
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.average:
            self.average.update_parameters(self.model)
        return losses

    def _gradients(
        self, batch: Batch, step: int, mix: Callable[[Batch], Batch]
    ) -> tuple[float, dict[str, float]]:
        """Set the gradients of a batch, summed over its parts in all processes; returns loss and terms."""
        sums: dict[str, Tensor] = {}
        first = self.ranks.index * self.settings.accumulate
        for part in range(first, first + self.settings.accumulate):
            torch.manual_seed(self.settings.seed * 1_000_003 + step + (part << 40))
            share = mix(moved(_part(batch, part, self.parts), self.settings.device))
            with autocast(self.kind, PRECISIONS[self.settings.precision], self.settings.precision != "fp32"):
                terms = self.model.loss(share)
            loss = torch.stack([term.float() for term in terms.values()]).sum() / self.parts
            self.scaler.scale(loss).backward()
            for name, term in {"": loss * self.parts, **terms}.items():
                sums[name] = sums.get(name, 0) + term.detach().float()
        self.ranks.sum_gradients(self.trained)
        means = self.ranks.sum(torch.stack(list(sums.values()))) / self.parts
        loss, *others = means.tolist()
        return loss, dict(zip(list(sums)[1:], others, strict=True))

    def memory_mib(self) -> dict[str, float]:
        """Return what the gradients and the optimiser's state take [MiB]."""
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        moments = [value for state in self.optimiser.state.values() for value in state.values()]
        return {"gradients": _mib(gradients), "optimiser": _mib(moments)}

    def state(self) -> dict[str, Tensor]:
        """Return what an interrupted run needs to go on with the same weights."""
        tensors = {f"weight.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"{key}.{name}"] = value
        if self.average:
            tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        scale = self.scaler.state_dict()
        return tensors | {f"scaler.{name}": torch.tensor(value) for name, value in scale.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.model.load_state_dict(_named(tensors, "weight."))
        for name, parameter in self.model.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            self.optimiser.state[parameter] = {
                key: tensors[f"{key}.{name}"] for key in keys if f"{key}.{name}" in tensors
            }
        if self.average:
            self.average.load_state_dict(_named(tensors, "average."))
        if scale := _named(tensors, "scaler."):
            self.scaler.load_state_dict({name: value.item() for name, value in scale.items()})


def _averaging(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Return what moves averaged weights towards the weights.

    The decay rises to its value, as in TensorFlow's ExponentialMovingAverage and in Chi et al. 2023,
    "Diffusion Policy", so that the first weights are soon forgotten.
    """

    def move(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        kept = min(decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(kept)(averaged, current, count)

    return move


def _mib(tensors: list[Tensor]) -> float:
    return round(sum(tensor.nbytes for tensor in tensors) / 2**20, 3)


def _part(batch: Batch, part: int, parts: int) -> Batch:
    """Return one of a batch's equal parts: frames in a row with all their commands."""
    if parts == 1:
        return batch
    fields = batch._asdict().items()
    return batch._replace(**{name: value.chunk(parts)[part] for name, value in fields if value is not None})


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
