"""What improves a policy: roll-outs' rewards, values of what the simulator knows, updates by PPO."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam

from vla.learning.acting import Actor
from vla.learning.ppo import advantages, clipped_objective, divergence, log_probability
from vla.learning.preferences import FEATURES, Reward
from vla.learning.rollouts import Explorer, Head, RollOut
from vla.tabletop.simulator import EPISODE_STEPS

# Largest norm of a gradient, of the policy's and of the values'.
CLIP_NORM = 0.5


@dataclass(frozen=True)
class Objective:
    """What is made large, and how."""

    # Weights of the task's reward, 1 when it is done, and of the learned one, whose deviation is 1 a step.
    task_weight: float = 1.0
    learned_weight: float = 0.1
    # Weight of the divergence from the cloned policy.
    divergence_weight: float = 0.02
    # Standard deviation of the noise on actions, as a share of half their range.
    deviation: float = 0.2
    # Discount of later rewards, and decay of later errors in the advantages.
    discount: float = 0.97
    decay: float = 0.95
    # How far the ratio of densities counts from 1.
    clip: float = 0.2
    # Passes over the steps in each update, steps in a batch, and learning rates of policy and values.
    epochs: int = 8
    batch: int = 64
    learning_rate: float = 1e-3
    value_rate: float = 3e-3

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "deviation", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"objective.{name} must be above 0, got {getattr(self, name)}")


class Steps(NamedTuple):
    """The N steps of all roll-outs of an iteration."""

    seen: Tensor  # float32 [N, F]
    cloned: Tensor  # float32 [N, A], the cloned policy's actions
    actions: Tensor  # float32 [N, A], normalised
    log_probability: Tensor  # float32 [N], when they were taken
    moments: Tensor  # float32 [N, FEATURES + 1], with the time
    advantage: Tensor  # float32 [N], of mean 0 and deviation 1
    returns: Tensor  # float32 [N]


class Learner:
    """A policy whose action head is improved, and what improves it."""

    def __init__(self, objective: Objective, actor: Actor, reward: Reward, seed: int) -> None:
        """Begin with a cloned policy and a learned reward.

        Raises:
            SpecError: the policy has no action head that could learn alone.
        """
        self.objective, self.head, self.reward = objective, Head(actor), reward
        self.log_deviation = torch.full((self.head.width,), objective.deviation).log()
        torch.manual_seed(seed)
        self.explorer = Explorer(self.head, self.log_deviation, torch.Generator().manual_seed(seed))
        self._cloned = copy.deepcopy(self.head.mlp)
        self.value = nn.Sequential(nn.Linear(FEATURES + 1, 64), nn.Tanh(), nn.Linear(64, 1))
        self.policy_optimiser = Adam(self.head.mlp.parameters(), lr=objective.learning_rate)
        self.value_optimiser = Adam(self.value.parameters(), lr=objective.value_rate)

    def rewards(self, rollout: RollOut) -> Tensor:
        """Return the weighted rewards of a roll-out's steps: float32 [N]."""
        with torch.no_grad():
            learned = self.reward(torch.from_numpy(rollout.moments))
        learned = self.objective.learned_weight * learned
        learned[-1] += self.objective.task_weight * rollout.success
        return learned

    def update(self, rollouts: Sequence[RollOut]) -> float:
        """Take the steps of one iteration; returns the mean divergence from the cloned policy after it."""
        steps, moved = self._steps(rollouts), []
        for _ in range(self.objective.epochs):
            order = torch.randperm(len(steps.returns), generator=self.explorer.random)
            moved = [self._step(steps, rows) for rows in order.split(self.objective.batch)]
        return float(np.mean(moved))

    def _step(self, steps: Steps, rows: Tensor) -> float:
        """Make one step on rows int64 [B]; returns their mean divergence from the cloned policy."""
        objective, deviation = self.objective, self.log_deviation
        mean = self.head.means(steps.seen[rows])
        change = log_probability(steps.actions[rows], mean, deviation) - steps.log_probability[rows]
        gain = clipped_objective(change.exp(), steps.advantage[rows], objective.clip)
        moved = divergence(mean, deviation, steps.cloned[rows], deviation).mean()
        _descend(self.policy_optimiser, objective.divergence_weight * moved - gain)
        missed = self.value(steps.moments[rows]).squeeze(-1) - steps.returns[rows]
        _descend(self.value_optimiser, missed.square().mean())
        return float(moved.detach())

    def _steps(self, rollouts: Sequence[RollOut]) -> Steps:
        """Join roll-outs, with the advantages of what was done in them."""
        found = [self._advantages(rollout) for rollout in rollouts]
        advantage = torch.cat([each for each, _ in found])
        seen = torch.cat([each.seen for each in rollouts])
        with torch.no_grad():
            cloned = self._cloned(seen)[:, : self.head.width]
        return Steps(
            seen=seen,
            cloned=cloned,
            actions=torch.cat([each.actions for each in rollouts]),
            log_probability=torch.cat([each.log_probability for each in rollouts]),
            moments=torch.cat([clocked(each)[:-1] for each in rollouts]),
            advantage=(advantage - advantage.mean()) / (advantage.std() + 1e-6),
            returns=torch.cat([each for _, each in found]),
        )

    @torch.no_grad()
    def _advantages(self, rollout: RollOut) -> tuple[Tensor, Tensor]:
        """Return a roll-out's advantages and returns: float32 [N] each."""
        values = self.value(clocked(rollout)).squeeze(-1)
        last = 0.0 if rollout.ended else float(values[-1])
        objective = self.objective
        return advantages(
            self.rewards(rollout), values[:-1], last, discount=objective.discount, decay=objective.decay
        )


def clocked(rollout: RollOut) -> Tensor:
    """Return a roll-out's moments, and how much time has passed at each: float32 [N + 1, FEATURES + 1]."""
    past = torch.arange(len(rollout.moments)) / EPISODE_STEPS
    return torch.cat([torch.from_numpy(rollout.moments), past[:, None]], dim=1)


def _descend(optimiser: Adam, loss: Tensor) -> None:
    """Make one step against the gradient, of a norm of `CLIP_NORM` at most."""
    optimiser.zero_grad()
    loss.backward()
    for group in optimiser.param_groups:
        nn.utils.clip_grad_norm_(group["params"], CLIP_NORM)
    optimiser.step()
