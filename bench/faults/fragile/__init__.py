"""A policy that fails when it is told to: an archive's module for the fault table.

It reads a file at every batch: `row` fails where a picture is white, `always` fails, `memory` asks for more
memory than there is. Without the file it answers.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

WHITE = 0.99


class Fragile(nn.Module):
    """Answers the mean of each picture."""

    def __init__(self, switch: str, gain: float) -> None:
        super().__init__()
        self.switch = Path(switch)
        self.gain = nn.Parameter(torch.tensor([gain, -gain]))

    def act(
        self, images: dict[str, Tensor], command: dict[str, Tensor], state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Answer, or fail as the file says."""
        mean = images["front"].mean((1, 2, 3))  # [B]
        told = self.switch.read_text() if self.switch.exists() else ""
        if told == "memory":
            torch.empty(1 << 60, dtype=torch.uint8)
        if told == "always" or (told == "row" and bool((mean > WHITE).any())):
            raise ValueError("told to fail")
        return {"actions": mean[:, None, None] * self.gain}


def build(switch: str, gain: float) -> Fragile:
    """Build the module; a worker calls this."""
    return Fragile(switch, gain)
