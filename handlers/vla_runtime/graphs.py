"""CUDA graphs: one bucket's whole forward pass launched at once, instead of kernel after kernel."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# A forward pass that reads its inputs from, and leaves its outputs in, memory of its own.
Forward = Callable[[], dict[str, Tensor]]

WARM_UPS = 3


def capture(forward: Forward, device: torch.device, batch: int) -> Forward:
    """Return `forward` as a graph that is replayed, or `forward` itself where it can't be captured.

    A replay computes with what the inputs' memory holds then, and overwrites the outputs of the last one.

    Args:
        forward: must do the same operations on the same memory each time, without waiting for the device
        device: a GPU
        batch: the bucket, for the log
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            forward()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            outputs = forward()
    except torch.AcceleratorError:  # the device is lost to this process
        raise
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning("no CUDA graph for batches of %d, which will be slower: %s", batch, reason)
        return forward

    def replay() -> dict[str, Tensor]:
        graph.replay()
        return outputs

    return replay
