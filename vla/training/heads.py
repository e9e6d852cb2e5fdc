"""`python -m vla.training.heads`: train the action and offset heads of a `grounded` further.

What a frame shows of each object is computed once, with the picture as it is and disturbed. Steps of the
heads alone cost far less than steps through tower and text encoder, so thousands can be taken. Reading,
finding and abstaining stay as they are.
"""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW
from tqdm import tqdm

from vla import checkpoint, provenance
from vla.models.grounded import REACH, SEEN, Model, missed_offset
from vla.tabletop.commands import COLOURS, GOALS, TASKS
from vla.tabletop.demonstrations import DatasetError, Demonstrations
from vla.tabletop.labels import TARGETS
from vla.training.augmentation import disturb
from vla.training.batches import Batches
from vla.training.imitation import learning_rate
from vla.training.settings import Settings
from vla_runtime.actions import normalise
from vla_runtime.errors import SpecError
from vla_runtime.preprocessing import normalise_pictures

# Frames that are looked at at once.
LOOKED_AT = 64
# What each goal means: int64 [G], the object, and the skill among those of the tabletop.
OBJECT = torch.from_numpy(TARGETS)
SKILL = torch.tensor([TASKS.index(goal.task) for goal in GOALS])
# Weight of the actions' error beside the offset's.
ACTIONS = 3.0


@dataclass(frozen=True)
class HeadSettings:
    """Train the heads of a `grounded` further, on demonstrations, and write the whole policy's checkpoint."""

    # Folder of the checkpoint to start from.
    start: Path = Path("runs/grounded")
    # Folder of the data set.
    data: Path = Path("data/tabletop")
    # Folder of the checkpoint to write.
    out: Path = Path("runs/grounded_heads")
    # Optimiser steps.
    steps: int = 4000
    # Frames in a batch, half of them disturbed, and goals of each.
    batch: int = 128
    commands: int = 4
    # Highest learning rate of the one-cycle schedule, and weight decay of AdamW.
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    # Share of the episodes held out for validation, as the start was trained.
    validation_share: float = 0.05
    # Seed of the split and of every batch.
    seed: int = 0
    # Threads that torch computes with.
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "commands", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def command_line(self) -> str:
        """The command that makes this run."""
        words = ["python", "-m", "vla.training.heads"]
        for name, value in asdict(self).items():
            if value != getattr(type(self), name):
                words += [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join(words)


class Views(NamedTuple):
    """What V frames show of each of N objects, and what each of G goals calls for."""

    view: Tensor  # float16 [V, N, width]
    state: Tensor  # float32 [V, S], normalised
    offset: Tensor  # float32 [V, N, 3], from the hand to the objects, in units of `REACH`
    inside: Tensor  # bool [V, N], whether the picture shows the object
    actions: Tensor  # float32 [V, G, T, A], normalised

    @classmethod
    def of(cls, batches: Batches, model: Model, rows: np.ndarray, random: torch.Generator | None) -> "Views":
        """Look at frames `rows`, int64 [V]; disturbed where there is a generator for it."""
        data, config = batches.dataset, batches.config
        seen = []
        for part in tqdm(torch.from_numpy(rows).split(LOOKED_AT), unit="batch", disable=None):
            pictures = torch.from_numpy(data.images[part.numpy()]).permute(0, 3, 1, 2).float() / 255
            pictures = pictures if random is None else disturb(pictures, random)
            images = normalise_pictures((255 * pictures).unsqueeze(1), config.cameras)
            with torch.inference_mode():
                seen.append(model.see(images, len(COLOURS)).half())
        state, boxes = data.state[rows], torch.from_numpy(data.boxes[rows])
        return cls(
            torch.cat(seen),
            torch.from_numpy(normalise(state, config.state) if config.state else state[:, :0]),
            torch.from_numpy(data.blocks[rows] - state[:, None, :3]) / REACH,
            (boxes[..., 2:] - boxes[..., :2]).amin(-1) > SEEN,
            torch.from_numpy(normalise(data.actions[rows], batches.space)),
        )

    def loss(self, model: Model, frames: Tensor, goals: Tensor) -> Tensor:
        """Return the heads' loss on frames int64 [M] with a goal each, int64 [M]."""
        objects = OBJECT[goals]
        to_do = model.skill_table[1 + SKILL[goals]]
        decision = model.decide(self.view[frames, objects].float(), self.state[frames], to_do)
        inside = self.inside[frames, objects].float()
        off = missed_offset(decision.offset, self.offset[frames, objects])
        missed = functional.mse_loss(decision.actions, self.actions[frames, goals])
        return (off * inside).sum() / inside.sum().clamp_min(1) + ACTIONS * missed


def train(settings: HeadSettings) -> tuple[float, float]:
    """Train the heads and write the checkpoint; all else, and the least confidence, are those of the start.

    Returns:
        the loss on validation frames, before and after

    Raises:
        SpecError: the start is no `grounded`, is incomplete or does not fit the data set.
        DatasetError: the data set is incomplete.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    config, model = checkpoint.load(settings.start)
    if not isinstance(model, Model):
        raise SpecError(f"{settings.start} is a {config.architecture}: only grounded has these heads")
    dataset = Demonstrations.load(settings.data)
    batches = Batches(dataset, config, settings.seed, settings.validation_share, counterfactual=1)
    random = torch.Generator().manual_seed(settings.seed)
    trained, held = batches.frames
    views = [Views.of(batches, model, trained, how) for how in (None, random)]
    validation = Views.of(batches, model, held, None)
    before = _validate(validation, model)
    _optimise(settings, views, model, random)
    after = _validate(validation, model)
    about = {
        "command_line": settings.command_line,
        "start": msgspec.json.decode((settings.start / checkpoint.PROVENANCE).read_bytes()),
        "seed": settings.seed,
        "commit": provenance.commit(),
        "dataset_sha256": provenance.digest(settings.data),
        "steps": settings.steps,
        "validation_loss": {"before": before, "after": after},
        "torch": str(torch.__version__),
    }
    checkpoint.save(settings.out, config, model, batches.example(), about, half=False)
    return before, after


def _optimise(settings: HeadSettings, views: list[Views], model: Model, random: torch.Generator) -> None:
    """Take the steps, each on frames of all views alike."""
    heads = [*model.offset_head.parameters(), *model.action_head.parameters()]
    optimiser = AdamW(heads, weight_decay=settings.weight_decay)
    schedule = Settings(learning_rate=settings.learning_rate)
    frames, share = len(views[0].state), settings.batch // len(views)
    for step in tqdm(range(settings.steps), unit="step", disable=None):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step / settings.steps, schedule)
        losses = []
        for view in views:
            rows = torch.randint(frames, (share,), generator=random).repeat_interleave(settings.commands)
            losses.append(view.loss(model, rows, torch.randint(len(GOALS), rows.shape, generator=random)))
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(heads, schedule.clip_norm)
        optimiser.step()


@torch.no_grad()
def _validate(views: Views, model: Model) -> float:
    """Return the loss on all frames under every goal."""
    frames = torch.arange(len(views.state)).repeat_interleave(len(GOALS))
    return float(views.loss(model, frames, torch.arange(len(GOALS)).repeat(len(views.state))))


def main() -> None:
    """Train as the command line says; exits with 1 and a message where that is refused."""
    try:
        settings = tyro.cli(HeadSettings, prog="python -m vla.training.heads")
        before, after = train(settings)
    except (SpecError, DatasetError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{settings.out}: validation loss {before:.4f} before, {after:.4f} after\n")


if __name__ == "__main__":
    main()
