"""A batch's tensors side by side in one buffer, so that they reach the device in one copy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Every tensor begins at a multiple of it [bytes].
ALIGNMENT = 64
DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


@dataclass(frozen=True)
class Inputs:
    """One observation as tensors."""

    # uint8 [C, 3, H, W]
    pictures: np.ndarray
    # int64 [L]
    ids: np.ndarray
    # int64 [L], 1 for a token, 0 for padding
    mask: np.ndarray
    # float32 [S], normalised
    state: np.ndarray
    # float32 [T, A], or [0, 0]
    noise: np.ndarray
    # When the answer becomes worthless [s since the epoch].
    deadline_s: float


class Staging:
    """The memory of one bucket's batches: `fill` overwrites what `pictures`, `state` and `noise` hold.

    On a GPU the host's side is pinned, and the copy runs on the current stream; the batch must have left the
    stream before the next one is filled in. On a CPU both sides are one.
    """

    # On the device: uint8 [B, C, 3, H, W], float32 [B, S], float32 [B, T, A].
    pictures: Tensor
    state: Tensor
    noise: Tensor

    def __init__(self, like: Inputs, bucket: int, device: torch.device) -> None:
        """Reserve memory for `bucket` observations of the same shapes as `like`."""
        arrays = (like.pictures, like.state, like.noise)
        sizes = [bucket * array.nbytes for array in arrays]
        begins = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]).tolist()
        on_gpu = device.type == "cuda"
        self._host = torch.empty(begins[-1], dtype=torch.uint8, pin_memory=on_gpu)
        self._device = torch.empty_like(self._host, device=device) if on_gpu else self._host

        def views(buffer: Tensor) -> list[Any]:
            return [
                buffer[begin : begin + size].view(DTYPES[array.dtype.name]).view(bucket, *array.shape)
                for array, begin, size in zip(arrays, begins[:-1], sizes, strict=True)
            ]

        self._rows = [view.numpy() for view in views(self._host)]
        self.pictures, self.state, self.noise = views(self._device)

    def fill(self, rows: Sequence[Inputs]) -> None:
        """Write `bucket` observations and send them to the device in one copy."""
        pictures, state, noise = self._rows
        np.stack([row.pictures for row in rows], out=pictures)
        np.stack([row.state for row in rows], out=state)
        np.stack([row.noise for row in rows], out=noise)
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)
