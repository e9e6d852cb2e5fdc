"""Distillation: a student learns from what a trained policy would do, beside what the demonstrations show."""

from pathlib import Path

import torch

from vla import checkpoint
from vla.models import Batch
from vla_runtime.errors import SpecError
from vla_runtime.spec import ContinuousSpace, Vector


class Teacher:
    """A trained policy whose actions are mixed into a student's targets (Hinton et al. 2015)."""

    def __init__(self, folder: Path, student: checkpoint.Config, share: float, device: str) -> None:
        """Load the teacher.

        Args:
            folder: its checkpoint
            student: what the student will be
            share: the teacher's part in a target, from 0 to 1
            device: where it computes

        Raises:
            SpecError: the checkpoint is incomplete, its cameras or tokenizer are not the student's, or the
                numbers of its state or action mean something else.
        """
        config, model = checkpoint.load(folder)
        for part in ("cameras", "tokenizer", "state", "action"):
            if _meaning(getattr(config, part)) != _meaning(getattr(student, part)):
                raise SpecError(f"the teacher {folder} has another {part} than the student: train both alike")
        self._model = model.to(device)
        self._share = share

    @torch.no_grad()
    def mix(self, batch: Batch) -> Batch:
        """Return the batch with the teacher's part in its actions; it sees a frame once for each command."""
        model, commands_per_frame = self._model, batch.commands_per_frame
        command, mask = model.encode_command(batch.input_ids, batch.attention_mask)
        answers = torch.empty_like(batch.actions)
        for row in range(commands_per_frame):
            rows = slice(row, None, commands_per_frame)
            noise = torch.randn_like(batch.actions[rows])
            answer = model.act(batch.images, command[rows], mask[rows], batch.state, noise)
            answers[rows] = answer["actions"]
        return batch._replace(actions=torch.lerp(batch.actions, answers, self._share))


def _meaning(part: object) -> object:
    """Return what two policies must share: of a vector, what its normalised numbers mean.

    Statistics that its rule does not use differ from one data set to the next, and change nothing.
    """
    if not isinstance(part, Vector):
        return part
    timing = (part.horizon, part.control_hz) if isinstance(part, ContinuousSpace) else None
    return part.dimensions, part.policy_width, part.shift.tolist(), part.scale.tolist(), timing
