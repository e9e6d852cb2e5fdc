"""What an interrupted run needs to continue to the same weights."""

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_runtime.errors import SpecError
from vla_runtime.spec import Part, dumps, load

STATE, TENSORS = "progress.json", "progress.safetensors"


class Point(Part, frozen=True):
    """The run as seen at one validation."""

    # Steps done.
    step: int
    # Mean training loss since the last point.
    loss: float
    learning_rate: float
    # Mean absolute error on validation frames, one a dimension [action unit].
    error: tuple[float, ...]


class Progress(Part, frozen=True):
    """How far a run has come."""

    settings: dict[str, Any]
    points: tuple[Point, ...] = ()
    # Time spent until the last step, without the validation after it, by the run's clock [s].
    wall_s: float = 0.0

    @property
    def step(self) -> int:
        """Steps done."""
        return self.points[-1].step if self.points else 0

    def extended(self, point: Point, wall_s: float) -> "Progress":
        """Return the progress at a further point, after `wall_s` in all [s]."""
        return Progress(settings=self.settings, points=(*self.points, point), wall_s=wall_s)


def store(folder: Path, progress: Progress, tensors: dict[str, Tensor]) -> None:
    """Write the run's state; an interruption leaves the state before it or this one, never a mixture."""
    folder.mkdir(parents=True, exist_ok=True)
    # The tensors name their step, so that a state and tensors of different steps are noticed.
    tensors = {"step": torch.tensor(progress.step), **tensors}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / f"{TENSORS}.new")
    (folder / f"{STATE}.new").write_bytes(dumps(progress))
    for name in (TENSORS, STATE):
        (folder / f"{name}.new").replace(folder / name)


def restore(folder: Path, settings: dict[str, Any]) -> tuple[Progress, dict[str, Tensor]]:
    """Read the state of an interrupted run.

    Raises:
        SpecError: there is no such run, or it has other settings.
    """
    progress = load(folder / STATE, Progress)
    other = [name for name, value in settings.items() if progress.settings.get(name) != value]
    if other:
        raise SpecError(f"{folder} was run with another {', '.join(other)}: it can't be resumed with these")
    tensors = load_file(folder / TENSORS)
    if int(tensors.pop("step")) != progress.step:
        raise SpecError(f"{folder}: {TENSORS} and {STATE} are of different steps: start again")
    return progress, tensors


def plain(settings: Any) -> dict[str, Any]:
    """Return settings as JSON gives them back, so that they can be compared."""
    return msgspec.json.decode(msgspec.json.encode(settings, enc_hook=str))
