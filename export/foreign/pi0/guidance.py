"""Real-time chunking for flows that were not trained for it: a chunk is drawn towards given first actions.

After Black, Galliker & Levine 2025, "Real-Time Execution of Action Chunking Flow Policies" (arXiv
2506.07339). At each step of the flow, the chunk that the velocity leads to is compared with the given
actions, and the difference corrects the velocity. `vjp` carries it back through the model, by a
vector-Jacobian product. `identity` takes the Jacobian for 1, as LeRobot's `policies/rtc` does in effect: it
needs no gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["identity", "vjp"]
# Largest weight of a correction, as by default in LeRobot.
MOST = 10.0
Velocity = Callable[[Tensor, float], Tensor]


class Guided(nn.Module):
    """A flow's `act`; an `export.source.ExportableModel`, with `prefix` and `delay` where it is guided."""

    # None: no actions are given.
    guidance: Kind | None = None

    @property
    def differentiates(self) -> bool:
        """Whether `act` takes gradients; see `export.source.ExportableModel`."""
        return self.guidance == "vjp"

    def act(
        self,
        images: dict[str, Tensor],
        command: dict[str, Tensor],
        state: Tensor,
        noise: Tensor,
        *given: Tensor,
    ) -> dict[str, Tensor]:
        """Compute one chunk; see `export.source.ExportableModel`. Pictures are in [-1, 1]."""
        if self.guidance == "vjp" and torch.is_inference_mode_enabled():
            # Autograd takes no tensor of inference mode.
            with torch.inference_mode(mode=False), torch.no_grad():
                copies = _copied((images, command, state, noise, *given))
                return {"actions": self._chunk(*copies)}
        return {"actions": self._chunk(images, command, state, noise, *given)}

    def _chunk(
        self,
        images: dict[str, Tensor],
        command: dict[str, Tensor],
        state: Tensor,
        noise: Tensor,
        *given: Tensor,
    ) -> Tensor:
        """Return the chunk float32 [B, T, A]."""
        raise NotImplementedError

    def _flowed(
        self, velocity: Velocity, noise: Tensor, times: Sequence[float], given: tuple[Tensor, ...]
    ) -> Tensor:
        """Carry noise [B, T, A] to actions, from time 1 on in equal steps.

        Args:
            velocity: of noisy actions [B, T, A] at a time
            noise: float32 [B, T, A]
            times: of the flow, one a step
            given: `prefix` float32 [B, T, A] and `delay` int64 [B], or nothing
        """
        actions = noise
        if not given:
            for time in times:
                actions = actions - velocity(actions, time) / len(times)
            return actions
        prefix, delay = given
        order = torch.arange(noise.shape[1], device=noise.device)
        known = (order < delay[:, None]).unsqueeze(-1)  # [B, T, 1]
        for time in times:
            change, correction = self._corrected(velocity, actions, time, prefix, known)
            actions = actions - (change - weight(time) * correction) / len(times)
        return torch.where(known, prefix, actions)

    def _corrected(
        self, velocity: Velocity, actions: Tensor, time: float, prefix: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity [B, T, A], and what corrects it; 0 in a row without given actions."""
        if self.guidance == "identity":
            change = velocity(actions, time)
            return change, _error(actions - time * change, prefix, known)
        with torch.enable_grad():
            free = actions.detach().requires_grad_()
            change = velocity(free, time)
            clean = free - time * change
            error = _error(clean.detach(), prefix, known)
            (correction,) = torch.autograd.grad(clean, free, error)
        return change.detach(), correction


def weight(time: float) -> float:
    """Return how much a correction counts at a time of the flow, which runs from 1 (noise) to 0 (actions)."""
    done = 1 - time
    if done <= 0:
        return MOST
    return min((time / done) * (time**2 + done**2) / time**2, MOST)


def _error(clean: Tensor, prefix: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, prefix - clean, torch.zeros_like(clean))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return tuple(_copied(part) for part in value)
