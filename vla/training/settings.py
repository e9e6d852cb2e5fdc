"""The settings of a training run; the command line is made from them."""

import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from vla.tabletop.commands import GOALS, parse
from vla.tabletop.texts import LONGEST
from vla_runtime.vectors import Normalisation

# Architectures whose head may answer logits of symbols.
SYMBOLIC = ("efficient", "memory_efficient", "realtime")


@dataclass(frozen=True)
class Recorded:
    """How recorded data is learned from: a folder of LeRobot's, or a mixture."""

    # Actions in a chunk [control steps].
    horizon: int = 8
    # Width and height of the pictures that the policy sees [pixels].
    image_size: int = 96
    # How often frames of failed episodes are drawn, relative to others: 0 leaves them out.
    failed: float = 1.0
    # Share of the samples that are mirrored, left for right; the mixture says how.
    mirror: float = 0.0

    def __post_init__(self) -> None:
        for name in ("horizon", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"recorded.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("failed", "mirror"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"recorded.{name} must be from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Settings:
    """Train a policy on demonstrations and write its checkpoint."""

    # Which policy: a name of `vla.models.ARCHITECTURES`.
    architecture: str = "grounded"
    # Which of the architecture's sizes.
    preset: Literal["default", "tiny", "base"] = "default"
    # Folder of the data set: as `python -m vla.tabletop` writes it, or data of any robot in LeRobot's format;
    # or the JSON file of a mixture, see docs/data.md.
    data: Path = Path("data/tabletop")
    # Folder of the run: the checkpoint, its training curve, and what --resume needs.
    out: Path = Path("runs/grounded")
    # Optimiser steps.
    steps: int = 2700
    # Instead of `steps`: train for this long, by the clock, to the end of the step that reaches it. The
    # teacher and all validations but the last are included. 0: `steps` [min].
    minutes: float = 0.0
    # What `minutes` are minutes of: of the clock, or of this process's use of the processor, all its threads
    # together, so that other work on the machine counts nothing.
    clock: Literal["wall", "process"] = "wall"
    # Frames in a batch.
    batch: int = 64
    # Commands that each frame of a batch is trained with.
    commands: int = 8
    # Highest learning rate of the one-cycle schedule.
    learning_rate: float = 3e-3
    # Weight decay of AdamW.
    weight_decay: float = 0.01
    # Largest norm of the gradient.
    clip_norm: float = 1.0
    # Share of the commands that are drawn from all goals; the rest is the goal that the episode pursued.
    counterfactual: float = 0.5
    # Goals that are never commanded, nor seen pursued, in training: `lift blue` for instance.
    excluded_goals: tuple[str, ...] = ()
    # Rule that normalises the state and the actions.
    normalisation: Normalisation = "bounds"
    # Longest command [tokens]; 0: 77 of CLIP's, 256 bytes.
    context_length: int = 0
    # Longest delay [control steps] that the architecture flow is trained for, by delays drawn up to it:
    # requests may then say which actions are executed until the answer comes.
    max_delay: int = 0
    # Words that the architecture rt2 answers besides, at most: what it sees and will do, or the answer to a
    # question about the scene. 16 hold the longest such text; 0: none.
    text_tokens: int = 0
    # Answer which steps a command still needs, by name, in place of actions: a high-level policy. For
    # demonstrations of the tabletop; architectures efficient, memory_efficient and realtime.
    symbolic: bool = False
    # Sentences of each goal that a policy that abstains is trained with.
    sentences: int = 3000
    # For each of `steps`, further ones of the heads of a `grounded` alone, and then of its reading alone;
    # none within `minutes`.
    heads: float = 1.5
    reading: float = 3.0
    # Share of the episodes held out for validation.
    validation_share: float = 0.05
    # Seed of the weights, of the split and of every batch.
    seed: int = 0
    # Steps between validations, each of which also saves what --resume needs.
    validate_every: int = 200
    # Threads that torch computes with; 0: one a core. Where others use the cores, more than one lose much.
    threads: int = 0
    # Where torch computes: cpu, cuda, cuda:1.
    device: str = "cpu"
    # Local folders of published models as transformers saves them, each for the tower of its kind: CLIP,
    # ResNet-18, MobileNetV2, EfficientNet-B0, DistilBERT (with its own tokenizer).
    pretrained: tuple[Path, ...] = ()
    # Folder of a trained policy's checkpoint, whose actions are mixed into the targets; None: no teacher.
    teacher: Path | None = None
    # The teacher's part in a target; the rest is the demonstration's.
    teacher_share: float = 0.5
    # Folder of a checkpoint of the same architecture and sizes, whose weights the run starts from.
    start: Path | None = None
    # Rank of the adapters by which alone the transformers of `start` learn on, merged at the end; 0: all
    # weights are trained.
    lora: int = 0
    # Write the weights in float16, half the size.
    half: bool = False
    # Parts that a process computes a batch in, one after another, to need less memory.
    accumulate: int = 1
    # Precision that the loss is computed in; weights and gradients are fp32 in any case. In fp16 the loss is
    # scaled, so that small gradients are not lost.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    # Decay of a moving average of the weights, 0.999 for instance, which is then what is validated and
    # written; 0: the weights themselves.
    ema: float = 0.0
    # Write loss, learning rate and validation errors for TensorBoard, into `out`/tensorboard.
    tensorboard: bool = False
    # How recorded data is learned from; nothing of it is for demonstrations of the tabletop.
    recorded: Recorded = field(default_factory=Recorded)
    # Continue the run in `out`, which must have the same settings: to the same weights, or to the end of its
    # minutes.
    resume: bool = False

    @property
    def command_line(self) -> str:
        """The command that makes this run: every setting that is not the default."""
        words = ["python", "-m", "vla.training"]
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default and each.name not in ("resume", "recorded"):
                words += _option(each.name.replace("_", "-"), value)
        usual = asdict(Recorded())
        for name, value in asdict(self.recorded).items():
            if value != usual[name]:
                words += _option(f"recorded.{name.replace('_', '-')}", value)
        return shlex.join(words)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "commands", "sentences", "validate_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.context_length < 0:
            raise ValueError(f"context_length must be 0 or more, got {self.context_length}")
        if self.max_delay and self.architecture != "flow":
            raise ValueError(f"max_delay is for the architecture flow, not {self.architecture}")
        self._check_text()
        if self.symbolic and self.architecture not in SYMBOLIC:
            raise ValueError(f"symbolic is for {', '.join(SYMBOLIC)}, not {self.architecture}")
        if self.symbolic and self.teacher is not None:
            raise ValueError("symbolic policies have no teacher: its answers are actions")
        if self.lora < 0 or (self.lora and self.start is None):
            raise ValueError(f"lora must be 0, or a rank with a --start to learn on from, got {self.lora}")
        for name in ("minutes", "heads", "reading"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        self._check_shares()
        if len({parse(goal) for goal in self.excluded_goals}) == len(GOALS):
            raise ValueError("excluded_goals leaves no goal to train")

    def _check_shares(self) -> None:
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be from 0 to below 1, got {self.ema}")
        if not 0 <= self.counterfactual <= 1:
            raise ValueError(f"counterfactual must be from 0 to 1, got {self.counterfactual}")
        if not 0 <= self.teacher_share <= 1:
            raise ValueError(f"teacher_share must be from 0 to 1, got {self.teacher_share}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be between 0 and 1, got {self.validation_share}")

    def _check_text(self) -> None:
        if self.text_tokens and self.architecture != "rt2":
            raise ValueError(f"text_tokens is for the architecture rt2, not {self.architecture}")
        if self.text_tokens not in (0, LONGEST):
            raise ValueError(f"text_tokens must be 0 or {LONGEST}, got {self.text_tokens}")


def _option(name: str, value: object) -> list[str]:
    """Write a setting as the command line has it."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
