"""A trained policy that acts in this process's simulator: no server, no archive, no safety layer."""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla import checkpoint
from vla.models import AnyModel
from vla.tabletop.simulator import Tabletop
from vla_runtime.actions import normalise, unnormalise
from vla_runtime.errors import SpecError
from vla_runtime.preprocessing import normalise_pictures
from vla_runtime.spec import ContinuousSpace


class Actor:
    """A policy of one camera and continuous actions; a command is encoded once."""

    def __init__(self, config: checkpoint.Config, model: AnyModel) -> None:
        """Take a model; its text encoder must not change afterwards.

        Raises:
            SpecError: the policy has several cameras, reads noise, or its actions are no continuous ones.
        """
        if not isinstance(config.action, ContinuousSpace) or len(config.cameras) != 1 or model.stochastic:
            raise SpecError(
                f"{config.name}: needs one camera, continuous actions and no noise to act in the simulator"
            )
        self.config, self.model, self.space = config, model.eval(), config.action
        self.image_size = config.cameras[0].width
        self._tokenizer = config.command_tokenizer()
        self._commands: dict[str, tuple[Tensor, Tensor]] = {}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a checkpoint; raises SpecError as `checkpoint.load` does."""
        return cls(*checkpoint.load(folder))

    @torch.no_grad()
    def chunk(self, env: Tabletop, command: str) -> NDArray[np.float32]:
        """Answer the simulator's present moment: float32 [T, A], physical units, unbounded."""
        if command not in self._commands:
            ids, mask = (torch.from_numpy(part)[None] for part in self._tokenizer(command))
            self._commands[command] = self.model.encode_command(ids, mask)
        pictures = torch.from_numpy(env.render(self.image_size)).permute(2, 0, 1)[None, None]
        images = normalise_pictures(pictures, self.config.cameras)
        vector = self.config.state
        state = normalise(env.state()[None], vector) if vector else np.zeros((1, 0), np.float32)
        inputs = *self._commands[command], torch.from_numpy(state), torch.zeros(1, 0, 0)
        return unnormalise(self.model.act(images, *inputs)["actions"][0].numpy(), self.space)
