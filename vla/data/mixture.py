"""Several data sets as one: mapped to common cameras and dimensions, what a data set lacks masked."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla.data import frames
from vla.data.episodes import DataError, Episode
from vla.data.formats import open_source
from vla.data.frames import Frames
from vla.data.lerobot.statistics import Summary
from vla.data.mirror import Reflection, can_be_mirrored, words
from vla.data.recipe import Ingredient, Recipe
from vla.data.sampler import Sampler

Bar = Callable[[Iterable[Episode]], Iterable[Episode]]
# Streams of randomness beside those of the sampler.
SPLIT, MIRROR = 7, 8
# Either side of a dimension that never changes, which has no range of its own [its unit].
CONSTANT = 1.0


class Samples(NamedTuple):
    """B samples of a mixture, state and actions normalised by the statistics of the data set of each."""

    images: NDArray[np.uint8]  # uint8 [B, C, 3, H, W], black where the data set lacks the camera
    seen: NDArray[np.bool_]  # bool [B, C], whether it has it
    state: NDArray[np.float32]  # float32 [B, S], 0 where the data set lacks the dimension
    measured: NDArray[np.bool_]  # bool [B, S], whether it has it
    actions: NDArray[np.float32]  # float32 [B, T, A], 0 where the data set lacks the dimension
    valid: NDArray[np.bool_]  # bool [B, T, A], whether it has it and the episode lasts so long
    commands: tuple[str, ...]
    dataset: NDArray[np.int64]  # int64 [B]


@dataclass(frozen=True)
class Scale:
    """How numbers are normalised: float64 [D], `(x - shift) / scale`."""

    shift: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, summary: Summary, rule: str) -> "Scale":
        """Take a rule of `vla_runtime.spec.Vector`; `bounds` are the smallest and largest number seen."""
        if rule == "identity":
            return cls(np.zeros_like(summary["mean"]), np.ones_like(summary["mean"]))
        if rule == "mean_std":
            return cls(summary["mean"], widened_std(summary))
        names = {"bounds": ("min", "max"), "quantiles": ("q01", "q99")}[rule]
        low, high = widened(summary, *names)
        return cls((low + high) / 2, (high - low) / 2)


@dataclass(frozen=True)
class Mapped:
    """One data set in a mixture's terms; places are -1 where it lacks something."""

    frames: Frames
    cameras: NDArray[np.int64]  # int64 [C], place in the data set
    state: NDArray[np.int64]  # int64 [S]
    action: NDArray[np.int64]  # int64 [A]
    state_scale: Scale | None
    action_scale: Scale
    # None: its samples are not mirrored.
    reflection: Reflection | None

    def gather(
        self, rows: NDArray[np.int64], mirrored: NDArray[np.bool_], horizon: int, index: int
    ) -> Samples:
        """Return the samples of frames, int64 [B], some mirrored, bool [B]; `index` is the data set's."""
        data, count = self.frames, len(rows)
        chunks, lasting = data.chunks(rows, horizon)
        commands = [data.commands[number] for number in data.command[rows]]
        pictures, state = data.images[rows], data.state[rows]
        if self.reflection is not None:
            flip = mirrored & [can_be_mirrored(command) for command in commands]
            pictures = np.where(flip[:, None, None, None, None], self.reflection.images(pictures), pictures)
            state = np.where(flip[:, None], self.reflection.states(state), state)
            chunks = np.where(flip[:, None, None], self.reflection.actions(chunks), chunks)
            commands = [words(each) if swap else each for each, swap in zip(commands, flip, strict=True)]
        images = np.zeros((count, len(self.cameras), *pictures.shape[2:]), np.uint8)
        has = self.cameras >= 0
        images[:, has] = pictures[:, self.cameras[has]]
        state = _normalised(state, self.state_scale) if self.state_scale else state
        return Samples(
            images,
            np.broadcast_to(has, (count, len(has))),
            _placed(state, self.state),
            np.broadcast_to(self.state >= 0, (count, len(self.state))),
            _placed(_normalised(chunks, self.action_scale), self.action),
            lasting[..., None] & (self.action >= 0),
            tuple(commands),
            np.full(count, index),
        )


class Mixture:
    """Data sets with their weights; the same arguments always give the same samples."""

    def __init__(
        self,
        recipe: Recipe,
        parts: Sequence[Frames],
        *,
        horizon: int,
        seed: int,
        normalisation: str = "bounds",
        held_out: float = 0.0,
        failed: float = 1.0,
        mirror: float = 0.0,
    ) -> None:
        """Map the data sets.

        Args:
            recipe: names and weights
            parts: the recipe's data sets
            horizon: actions in a chunk [steps]
            seed: of the order and of the split
            normalisation: a rule of `vla_runtime.spec.Vector`
            held_out: share of each data set's episodes that is never drawn, at least one unless 0
            failed: how often frames of failed episodes are drawn, relative to others, from 0 to 1
            mirror: share of the samples that are mirrored, of data sets whose mirror the recipe names

        Raises:
            DataError: a data set lacks what the recipe names of it, or nothing is left.
        """
        if mirror and not any(each.mirror for each in recipe.datasets):
            raise DataError("samples are to be mirrored, but the recipe says of no data set how")
        self._mirror = mirror
        self.horizon = horizon
        self.cameras = recipe.cameras or _union(recipe, parts, "cameras")
        self.state = recipe.state or _union(recipe, parts, "state")
        self.action = recipe.action or _union(recipe, parts, "action")
        pairs = list(zip(recipe.datasets, parts, strict=True))
        self.parts = tuple(self._mapped(each, part, normalisation) for each, part in pairs)
        splits = [_split(part, held_out, seed, index) for index, part in enumerate(parts)]
        # Of each data set, int64 [M]: the frames that are drawn, and those that are held out.
        self.trained = tuple(trained for trained, _ in splits)
        self.held_out = tuple(held for _, held in splits)
        good = [rows[~part.failed[rows]] for rows, part in zip(self.trained, parts, strict=True)]
        bad = [rows[part.failed[rows]] for rows, part in zip(self.trained, parts, strict=True)]
        self.sampler = Sampler(good, [each.weight for each in recipe.datasets], seed, bad, failed)

    @property
    def complete(self) -> bool:
        """Whether every data set has all dimensions of the action."""
        return all((part.action >= 0).all() for part in self.parts)

    def batch(self, step: int, size: int, rank: int = 0, ranks: int = 1) -> Samples:
        """Return a rank's part of a step's samples: of `size * ranks` draws every `ranks`-th one."""
        dataset, row = self.sampler.draws(step * size * ranks, size * ranks)
        random = np.random.default_rng([self.sampler.seed, MIRROR, step])
        mirrored = random.random(len(row)) < self._mirror
        mine = slice(rank, None, ranks)
        return self.gather(dataset[mine], row[mine], mirrored[mine])

    def gather(
        self,
        dataset: NDArray[np.int64],
        row: NDArray[np.int64],
        mirrored: NDArray[np.bool_] | None = None,
    ) -> Samples:
        """Return the samples of data sets and their frames, int64 [B] each, in this order.

        Args:
            dataset: the recipe's numbers of them
            row: of each data set
            mirrored: bool [B], which of them are mirrored, where they can be
        """
        flip = np.zeros(len(row), bool) if mirrored is None else mirrored
        order = np.argsort(dataset, kind="stable")
        present = np.unique(dataset)
        parts = [
            self.parts[each].gather(row[dataset == each], flip[dataset == each], self.horizon, each)
            for each in present
        ]
        back = np.argsort(order)
        names = [command for part in parts for command in part.commands]
        arrays = {
            field: np.concatenate([getattr(part, field) for part in parts])[back]
            for field in Samples._fields
            if field != "commands"
        }
        return Samples(**arrays, commands=tuple(names[place] for place in back))

    def summary(self, what: str) -> Summary:
        """Return the statistics of dimensions: of each those of the first data set that has it.

        Args:
            what: `state` or `action`
        """
        names = ("min", "max", "mean", "std", "q01", "q99")
        columns = []
        for index in range(len(getattr(self, what))):
            part = next(each for each in self.parts if getattr(each, what)[index] >= 0)
            values = getattr(part.frames, f"{what}_statistics")
            columns.append([values[name][getattr(part, what)[index]] for name in names])
        return dict(zip(names, np.array(columns).T, strict=True))

    def _mapped(self, ingredient: Ingredient, part: Frames, rule: str) -> Mapped:
        about = part.about
        return Mapped(
            part,
            _places(ingredient, "cameras", self.cameras, tuple(about.cameras)),
            _places(ingredient, "state", self.state, about.state),
            _places(ingredient, "action", self.action, about.action),
            Scale.of(part.state_statistics, rule) if about.state else None,
            Scale.of(part.action_statistics, rule),
            Reflection.of(ingredient.mirror, about) if ingredient.mirror else None,
        )


def load(recipe: Recipe, size: int, bar: Bar = iter) -> list[Frames]:
    """Read a recipe's data sets, pictures of one size [pixels]."""
    sources = [open_source(Path(each.path), each.control_hz) for each in recipe.datasets]
    return [frames.load(source, size, bar) for source in sources]


def widened(summary: Summary, low: str, high: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a range of each dimension, float64 [D]: of one that never changes, `CONSTANT` to either side."""
    lows, highs = summary[low], summary[high]
    constant = highs - lows <= 1e-6 * np.maximum(1, np.abs(highs))
    return np.where(constant, lows - CONSTANT, lows), np.where(constant, highs + CONSTANT, highs)


def widened_std(summary: Summary) -> NDArray[np.float64]:
    """Return each dimension's standard deviation, float64 [D]: `CONSTANT` of one that never changes."""
    std = summary["std"]
    return np.where(std <= 1e-6 * np.maximum(1, np.abs(summary["mean"])), CONSTANT, std)


def _normalised(values: NDArray[np.float32], scale: Scale) -> NDArray[np.float32]:
    return ((values - scale.shift) / scale.scale).astype(np.float32)


def _placed(values: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Put the last axis into a mixture's order, 0 where there is nothing."""
    out = np.zeros((*values.shape[:-1], len(places)), np.float32)
    out[..., places >= 0] = values[..., places[places >= 0]]
    return out


def _common(ingredient: Ingredient, what: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the common names of a data set's own names."""
    given = getattr(ingredient, what)
    unknown = sorted(set(given.values()) - set(names))
    if unknown:
        raise DataError(
            f"{ingredient.path}: {what} has no {', '.join(unknown)}; there are {', '.join(names)}"
        )
    back = {own: common for common, own in given.items()}
    return tuple(back.get(name, name) for name in names)


def _union(recipe: Recipe, parts: Sequence[Frames], what: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for ingredient, part in zip(recipe.datasets, parts, strict=True):
        found |= dict.fromkeys(_common(ingredient, what, tuple(getattr(part.about, what))))
    return tuple(found)


def _places(
    ingredient: Ingredient, what: str, common: tuple[str, ...], names: tuple[str, ...]
) -> NDArray[np.int64]:
    mine = _common(ingredient, what, names)
    if common and not set(common) & set(mine):
        raise DataError(f"{ingredient.path}: its {what} {mine} has none of the mixture's {common}")
    return np.array([mine.index(name) if name in mine else -1 for name in common], np.int64)


def _split(part: Frames, held_out: float, seed: int, index: int) -> tuple[NDArray, NDArray]:
    """Return the frames that are trained, and those of held out episodes."""
    episodes = len(part.success)
    count = min(episodes - 1, max(1, round(held_out * episodes))) if held_out else 0
    if held_out and episodes < 2:
        raise DataError("a data set needs two episodes at least: one to train on, one to validate on")
    order = np.random.default_rng([seed, SPLIT, index]).permutation(episodes)
    held = np.isin(part.episode, order[:count])
    return np.flatnonzero(~held), np.flatnonzero(held)
