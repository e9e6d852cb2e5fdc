"""Roll-outs of a Gaussian around a policy's actions, with all that a policy gradient needs of them.

The policy's action head alone learns: what it sees of a moment is computed once, when the robot is there.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vla.learning.acting import Actor
from vla.learning.episodes import Start, begin
from vla.learning.ppo import log_probability
from vla.learning.preferences import features
from vla.models.parts.mlp import ActionHead
from vla.tabletop.commands import Goal, phrase
from vla.tabletop.simulator import Tabletop
from vla_runtime.actions import unnormalise
from vla_runtime.errors import SpecError


class RollOut(NamedTuple):
    """One episode of N steps."""

    seen: Tensor  # float32 [N, F], what the action head saw
    actions: Tensor  # float32 [N, A], normalised, as drawn
    log_probability: Tensor  # float32 [N], of these actions
    moments: NDArray[np.float32]  # float32 [N + 1, FEATURES], what rewards and values see
    success: bool
    # Whether the task ended the episode, not the time.
    ended: bool


class Head:
    """The action head of a policy, and what it sees."""

    def __init__(self, actor: Actor) -> None:
        """Take it from a policy.

        Raises:
            SpecError: the architecture has no action head that is a perceptron.
        """
        head = getattr(actor.model, "action_head", None)
        if not isinstance(head, ActionHead):
            raise SpecError(f"{actor.config.architecture} has no action head that could learn alone")
        self.actor, self.mlp, self.width = actor, head.mlp, head.chunk[1]
        self._seen = torch.empty(0)
        head.register_forward_pre_hook(self._keep)

    def see(self, env: Tabletop, command: str) -> Tensor:
        """Return what the head sees in the simulator's present moment: float32 [F]."""
        self.actor.chunk(env, command)
        return self._seen

    def means(self, seen: Tensor) -> Tensor:
        """Return the first action of each chunk: float32 [N, F] to float32 [N, A], normalised."""
        return self.mlp(seen)[:, : self.width]

    def _keep(self, _: nn.Module, parts: tuple[Tensor, ...]) -> None:
        self._seen = torch.cat(parts, dim=-1)[0]


@dataclass(frozen=True)
class Explorer:
    """Acts with a policy's first action of each chunk, and Gaussian noise on it."""

    head: Head
    # float32 [A], logarithm of the noise's standard deviation, normalised.
    log_deviation: Tensor
    random: torch.Generator

    @torch.no_grad()
    def run(self, env: Tabletop, seed: int, goal: Goal, start: Start) -> RollOut:
        """Run an episode in a scene, in a training phrasing that follows from the seed."""
        begin(env, seed, goal, start)
        command = phrase(goal, seed)
        seen, actions, moments, densities = [], [], [features(env)], []
        while not env.over:
            seen.append(self.head.see(env, command))
            mean = self.head.means(seen[-1][None])
            noise = torch.randn(mean.shape, generator=self.random)
            actions.append(mean + self.log_deviation.exp() * noise)
            densities.append(log_probability(actions[-1], mean, self.log_deviation))
            env.step(unnormalise(actions[-1][0].numpy(), self.head.actor.space))
            moments.append(features(env))
        return RollOut(
            torch.stack(seen),
            torch.cat(actions),
            torch.cat(densities),
            np.stack(moments),
            env.success,
            env.outcome() is not None,
        )
