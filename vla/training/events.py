"""A run's curves for TensorBoard."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from vla.training.progress import Point

FOLDER = "tensorboard"


class Events(AbstractContextManager["Events"]):
    """Writes scalars into a run's folder; nothing without one."""

    def __init__(self, out: Path | None, step: int) -> None:
        """Begin after `step`: what an interrupted run wrote after it is not shown.

        Raises:
            ValueError: tensorboard is not installed.
        """
        self._writer = None
        if out is None:
            return
        try:
            from torch.utils.tensorboard.writer import SummaryWriter  # noqa: PLC0415
        except ImportError as error:
            raise ValueError("--tensorboard needs a package: pip install -e .[tensorboard]") from error
        self._writer = SummaryWriter(str(out / FOLDER), purge_step=step + 1 if step else None)

    def step(self, step: int, rate: float, loss: float, terms: dict[str, float]) -> None:
        """Write a step's learning rate, and its loss and the terms of that."""
        if self._writer:
            scalars = {"learning_rate": rate, "loss": loss} | {f"loss/{name}": terms[name] for name in terms}
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)

    def validation(self, point: Point, names: Sequence[str]) -> None:
        """Write the mean absolute error of each dimension of an action [action unit]."""
        if self._writer:
            for name, error in zip(names, point.error, strict=True):
                self._writer.add_scalar(f"validation_error/{name}", error, point.step)
            self._writer.flush()

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()
