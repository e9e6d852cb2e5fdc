"""A batch's tensors side by side in one buffer, so that they reach the device in one copy."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

# Every tensor begins at a multiple of it [bytes].
ALIGNMENT = 64
DTYPES = {"uint8": torch.uint8, "float32": torch.float32, "int64": torch.int64}


@dataclass(frozen=True)
class Inputs:
    """One observation as tensors."""

    # By the name of the input of `act`: `image.<camera>` uint8 [3, H, W], `state` float32 [S], normalised,
    # `noise` float32; with a history, [n, 3, H, W] and [n, S]; `prefix` float32 [T, A], normalised, and
    # `delay` int64 [], for a policy that takes them.
    tensors: dict[str, np.ndarray]
    # int64 [L]; [0] for a policy without a command
    ids: np.ndarray
    # int64 [L], 1 for a token, 0 for padding
    mask: np.ndarray
    # float32 [S], physical units, of the newest observation step
    state: np.ndarray
    # float32 [A], physical units, what the robot does last before this chunk; NaN where it did not say
    previous: np.ndarray
    # When the answer becomes worthless [s since the epoch].
    deadline_s: float
    # float32 [delay, A], physical units, what the robot executes of this chunk's time before it is there
    prefix: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    # As it was sent; empty for a policy without a command.
    command: str = ""


class Staging:
    """The memory of one bucket's batches: `fill` overwrites what `tensors` hold.

    On a GPU the host's side is pinned, and the copy runs on the current stream; the batch must have left the
    stream before the next one is filled in. On a CPU both sides are one.
    """

    # On the device, by the name of the input, a batch axis first.
    tensors: dict[str, Tensor]

    def __init__(self, like: Inputs, bucket: int, device: torch.device) -> None:
        """Reserve memory for `bucket` observations of the same shapes as `like`."""
        arrays = like.tensors
        sizes = [bucket * array.nbytes for array in arrays.values()]
        begins = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]).tolist()
        on_gpu = device.type == "cuda"
        self._host = torch.empty(begins[-1], dtype=torch.uint8, pin_memory=on_gpu)
        self._device = torch.empty_like(self._host, device=device) if on_gpu else self._host

        def views(buffer: Tensor) -> dict[str, Tensor]:
            places = zip(arrays.items(), begins[:-1], sizes, strict=True)
            return {
                name: buffer[begin : begin + size].view(DTYPES[array.dtype.name]).view(bucket, *array.shape)
                for (name, array), begin, size in places
            }

        self._rows = {name: view.numpy() for name, view in views(self._host).items()}
        self.tensors = views(self._device)

    def fill(self, rows: Sequence[Inputs]) -> None:
        """Write `bucket` observations and send them to the device in one copy."""
        for name, memory in self._rows.items():
            np.stack([row.tensors[name] for row in rows], out=memory)
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)
