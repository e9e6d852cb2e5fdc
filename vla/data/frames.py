"""All frames of a data set, pictures fitted to one size, where training reads them at random."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vla.data.episodes import About, DataError, Episode, Source
from vla.data.lerobot import statistics
from vla.data.lerobot.layout import ACTION, STATE
from vla.data.lerobot.statistics import Summary
from vla_runtime.errors import BadImage
from vla_runtime.preprocessing import picture
from vla_runtime.spec import Camera

# What fits a picture of any proportions into a square: the whole of it, on black.
RESIZE = "pad"


@dataclass(frozen=True)
class Frames:
    """N frames of E episodes; an episode's are adjacent."""

    about: About
    # uint8 [N, C, 3, size, size], RGB, the cameras in the order of `about`
    images: NDArray[np.uint8]
    state: NDArray[np.float32]  # float32 [N, S], physical units
    actions: NDArray[np.float32]  # float32 [N, A], physical units
    episode: NDArray[np.int64]  # int64 [N], index of the episode
    command: NDArray[np.int64]  # int64 [N], index into `commands`
    commands: tuple[str, ...]
    # Of each episode; None where nobody says.
    success: tuple[bool | None, ...]
    # Of the state and of the actions: float64 [S] and [A] each.
    state_statistics: Summary
    action_statistics: Summary

    def __len__(self) -> int:
        """Count the frames."""
        return len(self.episode)

    def chunks(self, rows: NDArray[np.int64], horizon: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the actions from frames on; past an episode's end the last one stays.

        Args:
            rows: int64 [B]
            horizon: actions in a chunk [steps], T

        Returns:
            float32 [B, T, A] in physical units, and bool [B, T]: whether the episode has the action
        """
        ends = np.searchsorted(self.episode, self.episode[rows], side="right")[:, None]  # [B, 1]
        wanted = rows[:, None] + np.arange(horizon)
        return self.actions[np.minimum(wanted, ends - 1)], wanted < ends

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Whether each frame is of an episode that failed: bool [N]."""
        return np.array([success is False for success in self.success])[self.episode]


def load(source: Source, size: int, bar: Callable[[Iterable[Episode]], Iterable[Episode]] = iter) -> Frames:
    """Read a data set; its pictures go into a file that vanishes with the process.

    Args:
        source: the data set
        size: the pictures' width and height [pixels]
        bar: shows how far reading has come

    Raises:
        DataError: the data set is damaged, or has no episode.
    """
    about, kept, lengths = source.about, [], []
    commands: dict[str, int] = {}
    with tempfile.TemporaryFile() as file:
        for episode in bar(source):
            episode.check(about)
            file.write(_pictures(episode, about, size).tobytes())
            for command in episode.commands:
                commands.setdefault(command, len(commands))
            numbers = np.array([commands[command] for command in episode.commands])
            kept.append((episode.state, episode.actions, numbers, episode.success))
            lengths.append(len(episode))
        if not kept:
            raise DataError("the data set has no episode")
        shape = (sum(lengths), len(about.cameras), 3, size, size)
        file.flush()
        images = np.memmap(file, np.uint8, "r", shape=shape)
    states, actions, numbers, success = zip(*kept, strict=True)
    return Frames(
        about,
        images,
        np.concatenate(states),
        np.concatenate(actions),
        np.repeat(np.arange(len(lengths)), lengths),
        np.concatenate(numbers),
        tuple(commands),
        success,
        _summary(source, STATE, states) if about.state else {},
        _summary(source, ACTION, actions),
    )


def cameras(names: Iterable[str], size: int) -> tuple[Camera, ...]:
    """Return how pictures of cameras become tensors, in training and in serving."""
    return tuple(Camera(name=name, width=size, height=size, resize=RESIZE) for name in names)


def _pictures(episode: Episode, about: About, size: int) -> NDArray[np.uint8]:
    """Return an episode's pictures as the policy sees them: uint8 [n, C, 3, size, size]."""
    fitted = np.empty((len(episode), len(about.cameras), 3, size, size), np.uint8)
    for place, camera in enumerate(cameras(about.cameras, size)):
        for frame, image in enumerate(episode.images[camera.name]):
            fitted[frame, place] = _fitted(image, camera)
    return fitted


def _fitted(image: Image.Image, camera: Camera) -> NDArray[np.uint8]:
    try:
        return picture(image, camera)
    except BadImage as error:
        raise DataError(f"camera {camera.name}: {error}") from error


def _summary(source: Source, column: str, parts: tuple[NDArray[np.float32], ...]) -> Summary:
    """Return what the data set says of a column; computed where it says nothing."""
    given = getattr(source, "statistics", {}).get(column)
    if given is None or any(name not in given for name in ("mean", "std", "min", "max")):
        given = statistics.joined([statistics.of_vectors(part) for part in parts])
    if any(each.shape != parts[0].shape[1:] for name, each in given.items() if name != "count"):
        raise DataError(f"the statistics of {column} have another width than its {parts[0].shape[1]} numbers")
    return given
