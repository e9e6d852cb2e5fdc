"""A policy's answers in this process, where a refusal is an error."""

from collections.abc import Sequence

import numpy as np

from vla_runtime.observation import Row
from vla_runtime.policy import Answer, Policy
from vla_runtime.spec import DiscreteSpace


def answers(policy: Policy, requests: Sequence[Row]) -> list[Answer]:
    """Answer a batch; a refused request is an error."""
    found = policy.infer(requests)
    answered = [answer for answer in found if isinstance(answer, Answer)]
    if len(answered) < len(found):
        refused = next(answer for answer in found if not isinstance(answer, Answer))
        raise RuntimeError(f"the policy refused a request: {refused}")
    return answered


def actions(policy: Policy, requests: Sequence[Row]) -> np.ndarray:
    """Answer a batch with chunks in normalised units, float32 [B, T, A]."""
    return normalised(policy, [answer.chunk.actions for answer in answers(policy, requests)])


def normalised(policy: Policy, actions: Sequence[object]) -> np.ndarray:
    """Return chunks of physical units [B, T, A] in normalised ones, float32; no symbols have any."""
    space = policy.spec.action
    assert not isinstance(space, DiscreteSpace)
    return np.asarray(actions, np.float32) / space.scale
