"""A mixture's batches as torch's `DataLoader` takes them: sharded over workers and ranks, resumable."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from vla.data.episodes import DataError
from vla.data.mixture import Mixture, Samples


class Stream(IterableDataset[Samples]):
    """A mixture's batches for a `DataLoader` with `batch_size=None`.

    Whatever the number of workers, the loader gives the same batches in the same order; the ranks' batches
    of a step are disjoint and together those of one process with a batch so many times larger.
    """

    def __init__(self, mixture: Mixture, size: int, rank: int = 0, ranks: int = 1) -> None:
        """`size`: samples in a batch of one rank."""
        self._mixture, self._size, self._rank, self._ranks = mixture, size, rank, ranks
        self._step = 0

    def __iter__(self) -> Iterator[Samples]:
        """Give the batches from the state's step on; of several workers each gives its part."""
        worker = get_worker_info()
        step, stride = self._step, 1
        if worker is not None:
            step, stride = step + worker.id, worker.num_workers
        while True:
            yield self._mixture.batch(step, self._size, self._rank, self._ranks)
            step += stride

    def state_dict(self, steps: int) -> dict[str, Any]:
        """Return what resumes after `steps` batches of the loader."""
        return {"step": self._step + steps, **self._fixed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken.

        Raises:
            DataError: it is of another mixture, batch size or number of ranks.
        """
        other = [name for name, value in self._fixed.items() if state.get(name) != value]
        if other:
            raise DataError(f"the state is of another {', '.join(other)}: it can't be resumed with these")
        self._step = int(state["step"])

    @cached_property
    def _fixed(self) -> dict[str, Any]:
        sampler = self._mixture.sampler
        return {
            "size": self._size,
            "ranks": self._ranks,
            "lengths": list(sampler.lengths),
            "weights": sampler.weights.tolist(),
            "seed": sampler.seed,
        }
