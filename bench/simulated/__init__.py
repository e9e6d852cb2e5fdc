"""A device that sleeps: an archive's module whose forward pass takes a set time and no processor.

One batch at a time, across all processes that name the same file, as on one GPU.
"""

import ctypes
import fcntl
from pathlib import Path

import torch
from torch import Tensor, nn

usleep = ctypes.CDLL(None).usleep  # lets other threads run, as a wait for a GPU does


class SimulatedDevice(nn.Module):
    """Answers the mean of each picture, after the device's time."""

    def __init__(self, lock: str, batch_ms: float, row_ms: float, width: int) -> None:
        super().__init__()
        self.lock = Path(lock)
        self.batch_ms, self.row_ms = batch_ms, row_ms
        self.weight = nn.Parameter(torch.ones(width))

    def act(
        self, images: dict[str, Tensor], command: dict[str, Tensor], state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Wait for the device, and compute."""
        (pictures,) = images.values()
        with self.lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            usleep(int(1000 * (self.batch_ms + self.row_ms * len(pictures))))
        mean = pictures.mean((1, 2, 3))  # [B]
        return {"actions": (mean[:, None, None] * self.weight).expand(-1, 8, -1).clamp(-1, 1)}


def build(lock: str, batch_ms: float, row_ms: float, width: int) -> SimulatedDevice:
    """Build the module; a worker calls this."""
    return SimulatedDevice(lock, batch_ms, row_ms, width)
