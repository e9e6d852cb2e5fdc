"""The mathematics of a policy gradient: Gaussians around actions, advantages, the clipped objective.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms"; advantages by Schulman et al. 2016,
"High-Dimensional Continuous Control Using Generalized Advantage Estimation".
"""

import math

import torch
from torch import Tensor


def log_probability(actions: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Return the log-density of actions under independent Gaussians.

    Args:
        actions: float32 [N, A]
        mean: float32 [N, A]
        log_deviation: float32 [A], logarithm of the standard deviations

    Returns:
        float32 [N], summed over the dimensions
    """
    scaled = (actions - mean) / log_deviation.exp()
    return -(scaled.square() / 2 + log_deviation + math.log(2 * math.pi) / 2).sum(-1)


def divergence(
    mean: Tensor, log_deviation: Tensor, other_mean: Tensor, other_log_deviation: Tensor
) -> Tensor:
    """Return the Kullback-Leibler divergence of Gaussians from other ones: float32 [N], shapes as above."""
    variance, other = (2 * log_deviation).exp(), (2 * other_log_deviation).exp()
    distance = (mean - other_mean).square()
    return (other_log_deviation - log_deviation + (variance + distance) / (2 * other) - 0.5).sum(-1)


def advantages(
    rewards: Tensor, values: Tensor, last_value: float, *, discount: float, decay: float
) -> tuple[Tensor, Tensor]:
    """Estimate how much better an episode's actions were than what was expected of their states.

    Args:
        rewards: float32 [T]
        values: float32 [T], expected returns of the states
        last_value: that of the state after the last action; 0 where the episode ended there
        discount: gamma, of later rewards
        decay: lambda, of later errors of the values

    Returns:
        the advantages, and the returns that values are trained on: float32 [T] each
    """
    found = torch.zeros_like(rewards)
    following, running = last_value, 0.0
    for step in reversed(range(len(rewards))):
        missed = rewards[step] + discount * following - values[step]
        running = missed + discount * decay * running
        found[step] = running
        following = values[step]
    return found, found + values


def clipped_objective(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return the mean of the smaller of the plain and the clipped gain, to be made large.

    Args:
        ratio: float32 [N], of the actions' densities now and when they were taken
        advantage: float32 [N]
        clip: how far the ratio counts from 1
    """
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
