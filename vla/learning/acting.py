"""Trained policies that act in this process's simulator: no server, no archive, no safety layer."""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla import checkpoint
from vla.models import AnyModel
from vla.tabletop.simulator import Tabletop
from vla.tabletop.steps import STEPS, carry_out
from vla_runtime.actions import normalise, unnormalise
from vla_runtime.errors import SpecError
from vla_runtime.preprocessing import normalise_pictures
from vla_runtime.spec import ContinuousSpace, DiscreteSpace


class Seeing:
    """A policy of one camera that answers the simulator's present moment; a command is encoded once."""

    def __init__(self, config: checkpoint.Config, model: AnyModel) -> None:
        """Take a model; its text encoder must not change afterwards."""
        self.config, self.model = config, model.eval()
        self.image_size = config.cameras[0].width
        self._tokenizer = config.command_tokenizer()
        self._commands: dict[str, tuple[Tensor, Tensor]] = {}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a checkpoint; raises SpecError as `checkpoint.load` does."""
        return cls(*checkpoint.load(folder))

    @torch.no_grad()
    def answer(self, env: Tabletop, command: str) -> dict[str, Tensor]:
        """Return what the model answers to one observation."""
        if command not in self._commands:
            ids, mask = (torch.from_numpy(part)[None] for part in self._tokenizer(command))
            self._commands[command] = self.model.encode_command(ids, mask)
        pictures = torch.from_numpy(env.render(self.image_size)).permute(2, 0, 1)[None, None]
        images = normalise_pictures(pictures, self.config.cameras)
        vector = self.config.state
        state = normalise(env.state()[None], vector) if vector else np.zeros((1, 0), np.float32)
        inputs = *self._commands[command], torch.from_numpy(state), torch.zeros(1, 0, 0)
        return self.model.act(images, *inputs)


class Actor(Seeing):
    """A policy of continuous actions."""

    def __init__(self, config: checkpoint.Config, model: AnyModel) -> None:
        """Take a model; its text encoder must not change afterwards.

        Raises:
            SpecError: the policy has several cameras, reads noise, or its actions are no continuous ones.
        """
        if not isinstance(config.action, ContinuousSpace) or len(config.cameras) != 1 or model.stochastic:
            raise SpecError(
                f"{config.name}: needs one camera, continuous actions and no noise to act in the simulator"
            )
        super().__init__(config, model)
        self.space = config.action

    def chunk(self, env: Tabletop, command: str) -> NDArray[np.float32]:
        """Answer the simulator's present moment: float32 [T, A], physical units, unbounded."""
        return unnormalise(self.answer(env, command)["actions"][0].numpy(), self.space)


class Planner(Seeing):
    """A policy that answers steps by name; the first one is carried out by the expert's own motions."""

    def __init__(self, config: checkpoint.Config, model: AnyModel) -> None:
        """Take a model; its text encoder must not change afterwards.

        Raises:
            SpecError: its symbols are not the tabletop's steps.
        """
        if config.action.names != STEPS:
            raise SpecError(f"{config.name}: needs the tabletop's steps to plan in the simulator")
        super().__init__(config, model)

    def chunk(self, env: Tabletop, command: str) -> NDArray[np.float32]:
        """Carry the first step out from the simulator's present moment: float32 [1, A], physical units."""
        step = int(self.answer(env, command)["logits"][0, 0].argmax())
        return carry_out(STEPS[step], env.state(), env.blocks())[None]


def load(folder: Path) -> Actor | Planner:
    """Read a checkpoint; raises SpecError as `checkpoint.load` does, or where it can't act here."""
    config, model = checkpoint.load(folder)
    return (Planner if isinstance(config.action, DiscreteSpace) else Actor)(config, model)
