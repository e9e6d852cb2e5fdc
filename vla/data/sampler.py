"""Which frame of which data set comes when: a fixed sequence, read from anywhere."""

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from vla.data.episodes import DataError

# Draws in a block: in each block a data set has its share, to one draw.
BLOCK = 256
# Streams of randomness under one seed.
CHOICE, ORDER, KEPT = range(3)


class Sampler:
    """An endless sequence of draws, which follows from its arguments alone.

    A data set is drawn by its weight, and its frames come in a new order in every pass. Of `rare` frames a
    pass has a share only, another one each time.
    """

    def __init__(
        self,
        rows: Sequence[NDArray[np.int64]],
        weights: Sequence[float],
        seed: int,
        rare: Sequence[NDArray[np.int64]] = (),
        share: float = 1.0,
    ) -> None:
        """Make the sequence.

        Args:
            rows: of each data set, int64 [M], the frames that every pass has
            weights: of each data set, positive
            seed: another one gives another sequence
            rare: of each data set, int64 [M], the frames of which a pass has a share
            share: that share, from 0 to 1

        Raises:
            DataError: a data set has no frame that is drawn.
        """
        self._rows, self.seed = tuple(rows), seed
        self._rare = tuple(rare) or tuple(each[:0] for each in rows)
        self._kept = [round(share * len(each)) for each in self._rare]
        self.lengths = tuple(len(row) + kept for row, kept in zip(rows, self._kept, strict=True))
        for index, length in enumerate(self.lengths):
            if not length:
                raise DataError(f"data set {index} has no frame to train on")
        total = np.asarray(weights, np.float64)
        self._borders = np.cumsum(total / total.sum())[:-1]
        self._passes = lru_cache(maxsize=2 * len(self.lengths))(self._pass)
        # How often each data set was drawn before each block.
        self._before = [np.zeros(len(self.lengths), np.int64)]

    def draws(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return draws number `first` to `first + count`: data set and frame, int64 [count] each."""
        block, offset = divmod(first, BLOCK)
        chosen, numbers = [], []
        while len(chosen) * BLOCK < offset + count:
            dataset, number = self._block(block + len(chosen))
            chosen.append(dataset)
            numbers.append(number)
        wanted = slice(offset, offset + count)
        dataset, number = np.concatenate(chosen)[wanted], np.concatenate(numbers)[wanted]
        rows = [
            self._frame(which, draw) for which, draw in zip(dataset.tolist(), number.tolist(), strict=True)
        ]
        return dataset, np.array(rows, np.int64)

    def _block(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return a block's data sets, and which draw of its data set each is: int64 [BLOCK] each."""
        while len(self._before) <= index:
            counts = np.bincount(self._choices(len(self._before) - 1), minlength=len(self.lengths))
            self._before.append(self._before[-1] + counts)
        dataset = self._choices(index)
        mine = dataset[:, None] == np.arange(len(self.lengths))  # [BLOCK, data sets]
        nth = self._before[index] + np.cumsum(mine, axis=0) - 1
        return dataset, nth[mine]

    def _choices(self, index: int) -> NDArray[np.int64]:
        """Return the data sets of a block: one draw from each of `BLOCK` equal parts of the weights."""
        random = np.random.default_rng([self.seed, CHOICE, index])
        points = (random.permutation(BLOCK) + random.random(BLOCK)) / BLOCK
        return np.searchsorted(self._borders, points, side="right")

    def _frame(self, dataset: int, draw: int) -> int:
        number, place = divmod(draw, self.lengths[dataset])
        return int(self._passes(dataset, number)[place])

    def _pass(self, dataset: int, number: int) -> NDArray[np.int64]:
        """Return one pass over a data set: its frames in a new order."""
        kept = self._rare[dataset]
        if self._kept[dataset] < len(kept):
            random = np.random.default_rng([self.seed, KEPT, dataset, number])
            kept = random.choice(kept, self._kept[dataset], replace=False)
        random = np.random.default_rng([self.seed, ORDER, dataset, number])
        return random.permutation(np.concatenate([self._rows[dataset], kept]))

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Each data set's share of the draws: float64 [data sets], their sum is 1."""
        return np.diff([0.0, *self._borders, 1.0])
