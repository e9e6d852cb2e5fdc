"""A device that sleeps: an archive's module whose forward pass takes a set time and no processor.

Processes that name the same file share one device as they share a GPU: it computes for one of them at a time,
and goes on to the next when that one's slice of time is over. Every batch is noted beside the file.
"""

import ctypes
import fcntl
import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

usleep = ctypes.CDLL(None).usleep  # lets other threads run, as a wait for a GPU does

RECORD = struct.Struct("=q3d")


class Batch(NamedTuple):
    """What became of one batch; times on the clock of `time.monotonic`, which all processes share [s]."""

    # Process id.
    worker: int
    # When the device began with it, and when it ended.
    begin_s: float
    end_s: float
    # Time that the device has spent on it.
    busy_s: float


def batches(device: Path) -> list[Batch]:
    """Return the batches that a device has computed, in the order in which they ended."""
    found = (Batch(*values) for values in RECORD.iter_unpack(_log(device).read_bytes()))
    return sorted(found, key=lambda batch: batch.end_s)


class SimulatedDevice(nn.Module):
    """Answers the mean of each picture, after the device's time."""

    def __init__(self, device: str, batch_ms: float, row_ms: float, slice_ms: float, width: int) -> None:
        super().__init__()
        self.device = Path(device)
        self.batch_ms, self.row_ms, self.slice_ms = batch_ms, row_ms, slice_ms
        self.weight = nn.Parameter(torch.ones(width))

    def act(
        self, images: dict[str, Tensor], command: dict[str, Tensor], state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Wait for the device, and compute."""
        (pictures,) = images.values()
        self._compute((self.batch_ms + self.row_ms * len(pictures)) / 1000)
        mean = pictures.mean((1, 2, 3))  # [B]
        return {"actions": (mean[:, None, None] * self.weight).expand(-1, 8, -1).clamp(-1, 1)}

    def _compute(self, needed_s: float) -> None:
        begin_s = busy_s = 0.0
        with self.device.open("a") as device, self.device.with_suffix(".next").open("a") as following:
            while busy_s < needed_s:
                # Who waits for the device holds the place of the next, so that others come after it.
                fcntl.flock(following, fcntl.LOCK_EX)
                fcntl.flock(device, fcntl.LOCK_EX)
                fcntl.flock(following, fcntl.LOCK_UN)
                since_s = time.monotonic()
                begin_s = begin_s or since_s
                usleep(int(1e6 * min(needed_s - busy_s, self.slice_ms / 1000)))
                busy_s += time.monotonic() - since_s
                fcntl.flock(device, fcntl.LOCK_UN)
        with _log(self.device).open("ab", buffering=0) as log:
            log.write(RECORD.pack(os.getpid(), begin_s, time.monotonic(), busy_s))


def build(device: str, batch_ms: float, row_ms: float, slice_ms: float, width: int) -> SimulatedDevice:
    """Build the module; a worker calls this."""
    return SimulatedDevice(device, batch_ms, row_ms, slice_ms, width)


def _log(device: Path) -> Path:
    return device.with_suffix(".log")
