"""Pre-training: a policy's towers learn from pictures and what is said of them, before they learn to act.

What comes out is a checkpoint whose action head has learned nothing: `python -m vla.training --start` goes on
from it by cloning.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from vla import checkpoint, provenance
from vla.learning.captions import MISSED, Captioned, Described, Objective
from vla.tabletop.demonstrations import Demonstrations
from vla.training.loop import optimise
from vla.training.progress import Progress
from vla.training.ranks import Ranks
from vla.training.settings import Settings
from vla.training.setup import describe, model_for
from vla.training.validation import Measure

# Held-out frames among whose descriptions each picture's is to be told.
VALIDATION = 64


@dataclass(frozen=True)
class Pretraining:
    """Train the towers of a policy on the tabletop's pictures and their descriptions."""

    # Folder of demonstrations; their actions are not looked at.
    data: Path = Path("data/tabletop")
    # Folder of the run.
    out: Path = Path("runs/pretrained")
    # Which policy, one with CLIP's towers, and which of its sizes.
    architecture: Literal["clip", "vl_transformer"] = "clip"
    preset: Literal["default", "tiny", "base"] = "default"
    # What is learned: to tell each picture's description from those of the others in the batch; to say it.
    objectives: tuple[Objective, ...] = ("contrast", "caption")
    # Optimiser steps, frames in a batch, and the highest learning rate of the one-cycle schedule.
    steps: int = 600
    batch: int = 128
    learning_rate: float = 1e-3
    # Seed of the weights, of the split and of every batch.
    seed: int = 0
    # Steps between validations.
    validate_every: int = 100
    # Threads that torch computes with; 0: one a core.
    threads: int = 1
    # Where torch computes: cpu, cuda, cuda:1.
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ValueError("objectives must name at least one")
        if self.batch < 2:
            raise ValueError(f"batch must be at least 2, to have others to tell from, got {self.batch}")

    @property
    def run(self) -> Settings:
        """The settings of the loop."""
        return Settings(
            architecture=self.architecture,
            preset=self.preset,
            data=self.data,
            out=self.out,
            steps=self.steps,
            batch=self.batch,
            commands=1,
            learning_rate=self.learning_rate,
            seed=self.seed,
            validate_every=self.validate_every,
            threads=self.threads,
            device=self.device,
        )


def pretrain(config: Pretraining) -> Progress:
    """Train, and write the policy's checkpoint into `config.out`.

    Raises:
        ValueError: the folder holds a checkpoint already.
        DatasetError: the data set is incomplete.
    """
    if (config.out / checkpoint.WEIGHTS).exists():
        raise ValueError(f"{config.out} holds a checkpoint already: name another folder by --out")
    settings = config.run
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    dataset = Demonstrations.load(settings.data)
    about = describe(settings, dataset)
    batches = Described(dataset, about, settings.seed, settings.validation_share, settings.counterfactual)
    policy = model_for(settings, about)
    model, held_out = Captioned(policy, config.objectives).to(settings.device), batches.held_out(VALIDATION)
    names, units = zip(*(MISSED[objective] for objective in config.objectives), strict=True)
    measure = Measure(names, units, lambda _, device: model.missed(held_out, device))
    progress, cost, _ = optimise(settings, batches, model, Ranks(), measure=measure)
    made = {
        "pretraining": config.objectives,
        "seed": config.seed,
        "commit": provenance.commit(),
        "steps": progress.step,
        "wall_s": round(progress.wall_s, 1),
        **dict(zip(names, progress.points[-1].error, strict=True)),
        **cost,
    }
    checkpoint.save(config.out, about, policy, batches.example(), made, half=False)
    return progress


def main() -> None:
    """Run as the command line says; exits with 1 and a message where that is refused."""
    try:
        config = tyro.cli(Pretraining, prog="python -m vla.learning.pretraining")
        last = pretrain(config).points[-1]
    except (ValueError, OSError) as error:  # also SpecError and DatasetError
        sys.exit(f"error: {error}")
    found = [
        f"{MISSED[objective][0]} {error:.2f}"
        for objective, error in zip(config.objectives, last.error, strict=True)
    ]
    print(f"{config.out}: {last.step} steps, on held-out frames {', '.join(found)}")


if __name__ == "__main__":
    main()
