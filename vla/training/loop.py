"""The loop that every architecture is trained by: steps, validations, and a state to resume from."""

import resource
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from vla.checkpoint import Config
from vla.models import AnyModel, Batch
from vla.training.distillation import Teacher
from vla.training.events import Events
from vla.training.learner import Learner
from vla.training.progress import Point, Progress, restore, store
from vla.training.ranks import Ranks
from vla.training.schedule import one_cycle
from vla.training.settings import Settings
from vla.training.setup import written
from vla.training.validation import Measure, short

# What minutes are measured by.
CLOCKS = {"wall": time.monotonic, "process": time.process_time}


class Drawn(Protocol):
    """What draws batches."""

    @property
    def config(self) -> Config:
        """What the policy is."""
        ...

    def train(self, step: int, frames: int, commands: int) -> Batch:
        """Draw the batch of a step."""
        ...


def optimise(
    settings: Settings,
    batches: Drawn,
    model: AnyModel,
    ranks: Ranks,
    *,
    measure: Measure,
    stop_after: int | None = None,
) -> tuple[Progress, dict[str, Any], AnyModel]:
    """Run until the steps or the time are spent; the first process saves the run at every validation.

    Args:
        settings: the run
        batches: what is learned from
        model: what learns, on the run's device
        ranks: this process among others
        measure: what validations measure
        stop_after: end after so many steps, as if interrupted

    Returns:
        how far the run came, what it cost this process, and the model to write: another one than was given
        where weights are averaged

    Raises:
        SpecError: the teacher does not fit, or the run to resume is missing or has other settings.
        ValueError: a batch can't be divided alike.
    """
    learner, progress = _begun(settings, model, ranks)
    first, begin_cpu_s = progress.step, time.process_time()
    progress, step = _Run(settings, batches, learner, ranks, measure).go_on(progress, stop_after)
    return progress, _cost(learner, step - first, time.process_time() - begin_cpu_s), learner.result


class _Run(NamedTuple):
    """A run, from where it has come to."""

    settings: Settings
    batches: Drawn
    learner: Learner
    ranks: Ranks
    measure: Measure

    def go_on(self, progress: Progress, stop_after: int | None) -> tuple[Progress, int]:
        """Return the progress at the last validation, and the steps made."""
        settings, ranks = self.settings, self.ranks
        mix, clock = _targets(settings, self.batches), CLOCKS[settings.clock]
        begin_s, losses, step = clock() - progress.wall_s, list[float](), progress.step
        share = _share(settings, ranks, step, progress.wall_s)
        total = None if settings.minutes else settings.steps
        events = Events(settings.out if settings.tensorboard and ranks.first else None, step)
        with tqdm(initial=step, total=total, unit="step", disable=not ranks.first) as bar, events:
            while share < 1 and step != stop_after:
                rate = one_cycle(share) * settings.learning_rate
                batch = self.batches.train(step, settings.batch, settings.commands)
                loss, terms = self.learner.step(batch, step, rate, mix)
                losses.append(loss)
                step += 1
                bar.update()
                events.step(step, rate, loss, terms)
                wall_s = clock() - begin_s
                share = _share(settings, ranks, step, wall_s)
                if ranks.first and (step % settings.validate_every == 0 or share == 1):
                    point = self._validated(step, losses, rate)
                    losses, progress = [], progress.extended(point, wall_s)
                    store(settings.out, progress, self.learner.state())
                    events.validation(point, self.measure.names)
                    said = {"loss": f"{point.loss:.4f}", "rate": f"{rate:.1e}"}
                    bar.set_postfix(said | {"error": short(point.error)})
        return progress, step

    def _validated(self, step: int, losses: Sequence[float], rate: float) -> Point:
        error = self.measure.error(self.learner.result, self.settings.device)
        return Point(step=step, loss=sum(losses) / len(losses), learning_rate=rate, error=error)


def _cost(learner: Learner, steps: int, cpu_s: float) -> dict[str, Any]:
    """Return the processor's time for a step, validations included, and the memory that training takes."""
    # Largest so far; Linux counts it in KiB, with the parts of mapped files that were read.
    resident_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "step_cpu_s": round(cpu_s / max(1, steps), 3),
        "memory_mib": learner.memory_mib() | {"resident": round(resident_mib)},
    }


def _begun(settings: Settings, model: AnyModel, ranks: Ranks) -> tuple[Learner, Progress]:
    """Return what learns and how far it has come: nowhere, or as the run to resume had."""
    learner, progress = Learner(settings, model, ranks), Progress(settings=_comparable(settings))
    if settings.resume:
        progress, tensors = restore(settings.out, progress.settings)
        learner.restore(tensors)
    return learner, progress


def _share(settings: Settings, ranks: Ranks, step: int, wall_s: float) -> float:
    """Return how much of the run is done, in [0, 1]: of its time where that is limited, else of its steps."""
    if settings.minutes:
        return ranks.of_first(min(1.0, wall_s / (60 * settings.minutes)))
    return step / settings.steps


def _targets(settings: Settings, batches: Drawn) -> Callable[[Batch], Batch]:
    """Return what makes of a batch's actions what is learned: the teacher, where there is one."""
    if settings.teacher is None:
        return _as_demonstrated
    return Teacher(settings.teacher, batches.config, settings.teacher_share, settings.device).mix


def _as_demonstrated(batch: Batch) -> Batch:
    return batch


def _comparable(settings: Settings) -> dict[str, Any]:
    """Return the settings that a resumed run must share."""
    free = ("out", "resume", "threads", "device", "half", "tensorboard")
    return {name: value for name, value in written(settings).items() if name not in free}
