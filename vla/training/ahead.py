"""Batches drawn ahead, by processes of their own, while the steps before are computed."""

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from vla.models import Batch
from vla.training.settings import Settings
from vla.training.setup import AnyBatches

# Further steps than any run takes.
STEPS = 1 << 40


class _Steps(Dataset[Batch]):
    """A run's batches by the number of their step."""

    def __init__(self, batches: AnyBatches, settings: Settings) -> None:
        self._batches, self._settings = batches, settings

    def __getitem__(self, step: int) -> Batch:
        return self._batches.train(step, self._settings.batch, self._settings.commands)


def drawn(batches: AnyBatches, settings: Settings, first: int) -> Iterator[Batch]:
    """Return the batches of steps `first` and later, the same ones however many processes draw them."""
    steps = _Steps(batches, settings)
    if not settings.workers:
        return map(steps.__getitem__, itertools.count(first))
    batches.train(first, 1, 1)  # what is read and drawn once, the processes then have
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(first, STEPS),
        num_workers=settings.workers,
        collate_fn=_as_is,
        multiprocessing_context="fork",
    )
    return iter(loader)


def _as_is(batch: Any) -> Any:
    return batch
