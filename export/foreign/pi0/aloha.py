"""A pi0 on ALOHA's arms: joints that turn the other way, and grippers that are angles to the policy.

As openpi's `policies/aloha_policy.py` has it. ALOHA says how far a gripper's fingers are apart, as a share of
their way; the policy knows the angle of the horn that moves them, a crank.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .model import Flow
from .model import build as build_policy

# Fingers closed and open, the crank's arm and its horn [m].
CLOSED, OPEN = 0.01844, 0.05800
ARM, HORN = 0.036, 0.022
# The angles that the policy calls 0 and 1 [rad].
ANGLE_0, ANGLE_1 = 0.5476, 1.6296


class Aloha(nn.Module):
    """An `export.source.ExportableModel` around a pi0. The state's grippers come in physical units."""

    signs: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        policy: Flow,
        signs: Sequence[float],
        grippers: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Compose it: each dimension's sign, the grippers' places, the statistics of their angles."""
        super().__init__()
        self.policy, self.grippers = policy, tuple(grippers)
        width = policy.config.action
        padded = [*signs, *[1.0] * (width - len(signs))]
        self.register_buffer("signs", torch.tensor(padded))
        self.register_buffer("mean", torch.tensor(tuple(mean)))
        self.register_buffer("std", torch.tensor(tuple(std)))

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Encode commands as the policy does."""
        return self.policy.encode_command(input_ids, attention_mask)

    def act(
        self,
        images: dict[str, Tensor],
        command: dict[str, Tensor],
        state: Tensor,
        noise: Tensor,
        *given: Tensor,
    ) -> dict[str, Tensor]:
        """Compute one chunk; see `export.source.ExportableModel`."""
        columns = list((state * self.signs).unbind(-1))
        for place, mean, std in zip(self.grippers, self.mean, self.std, strict=True):
            columns[place] = (gripper_angle(columns[place]) - mean) / std
        # The actions given, `prefix`, turn as the others do; `delay` is a number.
        given = (given[0] * self.signs, given[1]) if given else ()
        outputs = self.policy.act(images, command, torch.stack(columns, -1), noise, *given)
        return {"actions": outputs["actions"] * self.signs}


def gripper_angle(opening: Tensor) -> Tensor:
    """Return the angle of a gripper's horn, 0 to 1, for the share of its way that it is open, 0 to 1."""
    fingers = opening * (OPEN - CLOSED) + CLOSED
    sine = (HORN**2 + fingers**2 - ARM**2) / (2 * HORN * fingers)
    return (sine.clamp(-1, 1).arcsin() - ANGLE_0) / (ANGLE_1 - ANGLE_0)


def build(
    signs: list[float], grippers: list[int], mean: list[float], std: list[float], policy: dict[str, Any]
) -> Aloha:
    """Build the module of an `eager` archive."""
    return Aloha(build_policy(**policy), signs, grippers, mean, std)
