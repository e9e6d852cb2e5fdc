"""CUDA graphs: one bucket's whole forward pass launched at once, instead of kernel after kernel."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_runtime.errors import SpecError

logger = logging.getLogger(__name__)

# A forward pass that reads its inputs from, and leaves its outputs in, memory of its own.
Forward = Callable[[], dict[str, Tensor]]

WARM_UPS = 3
# Largest difference of a replay from the module itself: both compute alike, in the same kernels or others.
REPLAY_TOLERANCE = 2e-2


class Graphs:
    """The captured graphs of one device, on one stream of it, with one pool of memory between them.

    All work of a policy runs inside `stream()`: a graph must be captured beside the default stream, and what
    it reads must be written in order with it.
    """

    def __init__(self, device: torch.device, *, wanted: bool = True) -> None:
        on_gpu = device.type == "cuda"
        # Off where there is no GPU, and from the first capture on that fails.
        self.enabled = on_gpu and wanted
        self._device = _numbered(device)
        self._stream: Any = torch.cuda.Stream(device) if on_gpu else None
        # Replays follow one another on the stream and are read before the next: they may share memory.
        self._pool: Any = torch.cuda.graph_pool_handle() if self.enabled else None

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Run on the policy's own device and stream, in whatever thread this is."""
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def capture(self, forward: Forward, batch: int) -> Forward:
        """Return `forward` as a graph that is replayed, or `forward` itself where it can't be captured.

        A replay computes with what the inputs' memory holds then, and overwrites the outputs of the last one.
        To be called inside `stream()`.

        Args:
            forward: must do the same operations on the same memory each time, without waiting for the device
            batch: the bucket, for the log
        """
        if not self.enabled:
            return forward
        for _ in range(WARM_UPS):
            forward()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            outputs = self._record(graph, forward, self._pool)
        except (
            RuntimeError
        ) as error:  # torch.AcceleratorError among them: that of a capture is no lost device
            torch.cuda.synchronize(self._device)  # raises where the device is lost after all
            self.enabled = False
            self._mend()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.warning("no CUDA graph for batches of %d, which will be slower: %s", batch, reason)
            return forward

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return outputs

        return replay

    def _record(self, graph: torch.cuda.CUDAGraph, forward: Forward, pool: Any) -> dict[str, Tensor]:
        """Capture one forward pass, and leave capturing whatever happens in it."""
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            outputs = forward()
        except BaseException:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
        return outputs

    def _mend(self) -> None:
        """Leave what a failed capture leaves open: it ends before torch has closed its own books.

        The allocator would keep all memory for the capture, and random numbers would wait for its end.
        """
        if self._stream is None:
            return
        with contextlib.suppress(RuntimeError):  # it was closed after all
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)
            torch._C._cuda_releasePool(self._device.index, self._pool)
        memory, graph = torch.zeros(1, device=self._device), torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        self._record(graph, lambda: {"ended": memory.add_(1)}, torch.cuda.graph_pool_handle())


def _numbered(device: torch.device) -> torch.device:
    """Return the device by its number: `cuda` alone means the current one."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def check_replay(pairs: Sequence[tuple[np.ndarray, np.ndarray]], batch: int) -> None:
    """Refuse a graph that does not compute: it would answer what was in memory when it was captured.

    Args:
        pairs: for each of several different inputs, the actions that the graph and the module itself give
        batch: the bucket, for the message

    Raises:
        SpecError: a replay differs from the module, or is the same for inputs that the module tells apart.
    """
    for replayed, computed in pairs:
        difference = float(np.abs(replayed - computed).max(initial=0.0))
        if not difference <= REPLAY_TOLERANCE * max(1.0, float(np.abs(computed).max(initial=0.0))):
            raise SpecError(
                f"the CUDA graph of batches of {batch} answers otherwise than the policy itself, by "
                f"{difference:.2g}"
            )
    (first, one), (second, other) = pairs[0], pairs[-1]
    if np.array_equal(first, second) and not np.array_equal(one, other):
        raise SpecError(f"the CUDA graph of batches of {batch} gives one answer to different inputs")
