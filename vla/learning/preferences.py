"""Preferences between segments of roll-outs, and a reward that is learned from them.

Christiano et al. 2017, "Deep Reinforcement Learning from Human Preferences": which of two segments is better
is modelled by Bradley & Terry 1952 from the sums of a reward over each. Here a script says which is better:
the one in which the hand came nearer to its block or raised it more, with noise as people have it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from vla.evaluation.report import Rate
from vla.tabletop.simulator import Tabletop

# What a reward sees of a moment, see `features`.
FEATURES = 5
HIDDEN = 32
# Metres are this many units of a feature.
METRE = 10.0
# How much more a metre of the block's height is worth than one of the hand's way to it.
HEIGHT = 3.0


class Pairs(NamedTuple):
    """M pairs of segments of T steps, and which of each is preferred."""

    # float32 [M, 2, T + 1, FEATURES], the moments of a segment's steps and the one after them
    moments: Tensor
    # float32 [M], 1 where the second segment is preferred, 0 where the first is
    second: Tensor


class Reward(nn.Module):
    """A reward of a step, from the moments before and after it.

    Preferences between segments of one length leave open what every step is worth besides: here a step that
    changes nothing is worth nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))
        self.layers = nn.Sequential(
            nn.Linear(2 * FEATURES, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, 1),
        )

    def forward(self, moments: Tensor) -> Tensor:
        """Return the rewards of steps: float32 [..., T + 1, FEATURES] to float32 [..., T]."""
        before, after = moments[..., :-1, :], moments[..., 1:, :]
        changed, unchanged = (self.layers(torch.cat([before, end], dim=-1)) for end in (after, before))
        return self.scale * (changed - unchanged).squeeze(-1)


def features(env: Tabletop) -> NDArray[np.float32]:
    """Return where the commanded block is from the hand, the height, the opening: float32 [FEATURES]."""
    x, y, z, opening = env.hand()
    block = np.array(env.block(env.goal.colour)) - (x, y, z)
    return np.array([*(METRE * block), METRE * z, opening], np.float32)


def progress(moments: NDArray[np.float32]) -> float:
    """Return how much nearer a segment brings the hand to its block, and the block from the table [m].

    Args:
        moments: float32 [T + 1, FEATURES]; a block's height counts `HEIGHT` times, for a block is lifted by
            less than hands travel
    """
    ends = moments[[0, -1]] / METRE
    distance = np.linalg.norm(ends[:, :3], axis=1)
    height = ends[:, 2] + ends[:, 3]
    return float(distance[0] - distance[1] + HEIGHT * (height[1] - height[0]))


def judge(
    random: np.random.Generator, first: float, second: float, *, temperature: float, mistakes: float
) -> bool:
    """Return whether the second of two segments is preferred, by their progress [m].

    A share of the answers, `mistakes`, is drawn evenly; others are Bradley & Terry's at a `temperature` [m].
    """
    if random.random() < mistakes:
        return bool(random.random() < 0.5)
    return bool(random.logistic(0, temperature) < second - first)


def draw_pairs(
    random: np.random.Generator,
    episodes: Sequence[NDArray[np.float32]],
    count: int,
    steps: int,
    *,
    temperature: float = 0.01,
    mistakes: float = 0.1,
) -> Pairs:
    """Draw segments from episodes and have them judged.

    Args:
        random: draws segments and noise
        episodes: float32 [N + 1, FEATURES] each, the moments of N steps
        count: M, pairs
        steps: T, of a segment; shorter episodes are left out
        temperature: at which the script hesitates [m]
        mistakes: share of answers drawn evenly

    Raises:
        ValueError: no episode has so many steps.
    """
    long = [episode for episode in episodes if len(episode) > steps]
    if not long:
        raise ValueError(f"no episode has {steps} steps")

    def segment() -> NDArray[np.float32]:
        episode = long[random.integers(len(long))]
        start = random.integers(len(episode) - steps)
        return episode[start : start + steps + 1]

    moments, second = [], []
    for _ in range(count):
        pair = segment(), segment()
        moments.append(np.stack(pair))
        second.append(judge(random, *map(progress, pair), temperature=temperature, mistakes=mistakes))
    return Pairs(torch.from_numpy(np.stack(moments)), torch.tensor(second, dtype=torch.float32))


def bradley_terry(rewards: Tensor, second: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of preferences.

    Args:
        rewards: float32 [M, 2, T], of the steps of both segments
        second: float32 [M], how probable it is that the second one is preferred; 0 or 1 where that is known
    """
    returns = rewards.sum(-1)
    return functional.binary_cross_entropy_with_logits(returns[:, 1] - returns[:, 0], second)


def fit(
    reward: Reward, pairs: Pairs, *, seed: int, epochs: int = 60, batch: int = 64, rate: float = 3e-3
) -> None:
    """Train a reward on pairs; its rewards are then scaled to a standard deviation of 1 on them."""
    optimiser = AdamW(reward.parameters(), lr=rate, weight_decay=1e-2)
    random = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(pairs.second), generator=random).split(batch):
            loss = bradley_terry(reward(pairs.moments[rows]), pairs.second[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        reward.scale /= reward(pairs.moments).std()


@torch.inference_mode()
def accuracy(reward: Reward, pairs: Pairs) -> Rate:
    """Return in how many pairs the segment of the larger return is the preferred one."""
    returns = reward(pairs.moments).sum(-1)
    right = (returns[:, 1] > returns[:, 0]) == (pairs.second > 0.5)
    return Rate(int(right.sum()), len(right))
