"""A policy of one's own: two cameras of different size, no state, a 6D rotation, its own tokenizer.

    python -m export examples/own_policy/policy.py:make --output model_store/mine.mar

Copy this folder into your repository and replace `TwoCameras` by your module, trained.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.source import Observation, Source
from vla_runtime.spec import Camera, ContinuousSpace, Dimension, Rotation, Safety, Statistics, Tokenizer

HORIZON = 4
ROTATION = ("r11", "r21", "r31", "r12", "r22", "r32")
WORDS = 10  # entries of tokenizer.json
NAMES = ("x", "y", "z", *ROTATION, "gripper")


class TwoCameras(nn.Module):
    """Anything that sees and reads; yours is larger, and its weights are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        self.towers = nn.ModuleDict({name: nn.Conv2d(3, 8, 16, 16) for name in ("front", "wrist")})
        self.head = nn.Linear(16 + 8 + 8, HORIZON * len(NAMES))

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Average the vectors of a command's words."""
        mask = attention_mask.unsqueeze(-1)  # [N, L, 1]
        return {"meaning": (self.words(input_ids) * mask).sum(1) / mask.sum(1)}  # [N, 16]

    def act(
        self, images: dict[str, Tensor], command: dict[str, Tensor], state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Look with both cameras and say where to move."""
        seen = [tower(images[name]).relu().mean((2, 3)) for name, tower in self.towers.items()]  # [B, 8] each
        actions = self.head(torch.cat([command["meaning"], *seen], dim=-1))
        return {"actions": actions.unflatten(-1, (HORIZON, len(NAMES)))}


def make() -> Source:
    """Describe the policy; `python -m export` calls this."""
    torch.manual_seed(0)  # instead of: model.load_state_dict(torch.load("mine.pt", weights_only=True))
    bounds = [("m", 0.05)] * 3 + [("1", 1.5)] * 6 + [("1", 1.0)]
    return Source(
        model=TwoCameras().eval(),
        name="two_cameras",
        cameras=(
            Camera(name="front", width=224, height=224, resize="pad", interpolation="bilinear"),
            Camera(name="wrist", width=128, height=96, resize="stretch", values="minus_one_to_one"),
        ),
        tokenizer=Tokenizer(file="tokenizer.json", context_length=12, pad_id=0),
        tokenizer_file=Path(__file__).parent / "tokenizer.json",
        action=ContinuousSpace(
            dimensions=tuple(
                Dimension(name=name, unit=unit, low=-bound, high=bound)
                for name, (unit, bound) in zip(NAMES, bounds, strict=True)
            ),
            normalisation="quantiles",
            statistics=Statistics(q01=(-0.04,) * 3 + (-1.0,) * 7, q99=(0.04,) * 3 + (1.0,) * 7),
            rotations=(Rotation(kind="rotation_6d", dimensions=ROTATION),),
            horizon=HORIZON,
            control_hz=10.0,
        ),
        safety=Safety(mode="clamp"),
        example=Observation(
            images={
                "front": np.full((240, 320, 3), 120, np.uint8),
                "wrist": np.full((120, 160, 3), 80, np.uint8),
            },
            command="push the red cup",
        ),
    )
