"""Policies of a few lines, each of another kind, as sources that export takes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from PIL import Image
from torch import Tensor, nn

from export.source import Eager, Observation, Source
from vla_runtime.spec import (
    Camera,
    ContinuousSpace,
    Dimension,
    DiscreteSpace,
    Rotation,
    Safety,
    Statistics,
    Tokenizer,
    Vector,
)

Tensors = dict[str, Tensor]
QUATERNION = ("qx", "qy", "qz", "qw")
PACKAGE = """
import torch
from torch import nn


class Branching(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.full((2,), float(gain)))

    def act(self, images, command, state, noise):
        grey = images["front"].mean((1, 2, 3))  # [B]
        # A branch on values: what no tracer takes.
        actions = [self.gain * g if g > 0.5 else -self.gain * g for g in grey]
        return {"actions": torch.stack(actions).unsqueeze(1)}


def build(gain):
    return Branching(gain)
"""


class Seeing(nn.Module):
    """The brightness of the pictures, the state and the noise, in the order that each test reads."""

    def __init__(self, answer: Any, words: int = 0) -> None:
        super().__init__()
        self.answer = answer
        if words:
            self.words = nn.Embedding(words, 3)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        mask = attention_mask.unsqueeze(-1)
        mean = (self.words(input_ids) * mask).sum(1) / mask.sum(1)
        return {"mean": mean, "length": attention_mask.sum(1)}

    def act(
        self, images: dict[str, Tensor], command: dict[str, Tensor], state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        return self.answer(images, command, state, noise)


def grey(value: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.full((size[1], size[0], 3), value, np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def dimensions(*names: str, bound: float = 2.0, **more: Any) -> tuple[Dimension, ...]:
    return tuple(Dimension(name=name, unit="1", low=-bound, high=bound, **more) for name in names)


def space(dims: tuple[Dimension, ...], **more: Any) -> ContinuousSpace:
    given = {"normalisation": "identity", "statistics": Statistics(), "horizon": 2, "control_hz": 10.0} | more
    return ContinuousSpace(dimensions=dims, **given)


CAMERA = Camera(name="front", width=8, height=8, resize="none", values="zero_to_one")


def remembering() -> Source:
    """Two observation steps, no command, noise 5 wide, a joint relative to the state, padded to 8."""

    def answer(images: Tensors, _command: Any, state: Tensor, noise: Tensor) -> Tensors:
        old, new = images["front"].mean((2, 3, 4)).unbind(1)  # [B] each
        moved = torch.stack([new - old, 10 * (new - old), state[:, -1, 0], noise[:, 0, 4]], -1)  # [B, 4]
        actions = torch.cat([moved, state[:, 0, :1] + 3, moved[:, :3] * 0], -1)  # [B, 8]
        return {"actions": actions.unsqueeze(1).repeat(1, 2, 1)}

    joint = Dimension(
        name="joint", unit="rad", low=-2, high=2, meaning="absolute", state="joint", relative=True
    )
    lift = Dimension(name="lift", unit="m", low=-20, high=20, meaning="absolute", state="joint")
    return Source(
        model=Seeing(answer).eval(),
        name="remembering",
        cameras=(CAMERA,),
        history=2,
        state=Vector(
            dimensions=(Dimension(name="joint", unit="rad", low=-3, high=3),),
            normalisation="mean_std",
            statistics=Statistics(mean=(1.0,), std=(0.5,)),
            padded_to=4,
        ),
        noise=(2, 5),
        action=space((joint, lift, *dimensions("echo", "drawn")), padded_to=8, passthrough=("echo",)),
        safety=Safety(max_step=(None, 0.5, None, None)),
        example=Observation({"front": (grey(10), grey(20))}, state=((0.0,), (0.5,))),
    )


def turning() -> Source:
    """A rate and a quaternion; low confidence is held: no rate, and the rotation that is declared."""

    def answer(images: Tensors, _command: Any, _state: Tensor, _noise: Tensor) -> Tensors:
        bright = images["front"].mean((1, 2, 3))
        actions = torch.stack([bright, *[bright + 0.1] * 3, bright + 1], -1)
        return {"actions": actions.unsqueeze(1).repeat(1, 2, 1), "confidence": bright}

    turn = space(
        (*dimensions("rate", meaning="velocity"), *dimensions(*QUATERNION)),
        rotations=(Rotation(kind="quaternion", dimensions=QUATERNION),),
    )
    return Source(
        model=Seeing(answer).eval(),
        name="turning",
        cameras=(CAMERA,),
        action=turn,
        safety=Safety(min_confidence=0.5, hold_action=(None, 0.0, 0.0, 0.0, 1.0)),
        example=Observation({"front": grey(200)}),
    )


def choosing(folder: Path) -> Source:
    """Named actions; only commands of equal length share a forward pass; a template of its own."""
    words = ["[unknown]", "do", ":", "lift", "drop", "now", "please"]
    reader = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unknown]")
    )
    reader.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    reader.save(str(folder / "words.json"))

    def answer(_images: Any, command: Tensors, _state: Tensor, _noise: Tensor) -> Tensors:
        length = command["length"].float().unsqueeze(-1)
        logits = torch.cat([command["mean"], length], -1)
        return {"logits": logits.unsqueeze(1)}

    torch.manual_seed(0)
    return Source(
        model=Seeing(answer, len(words)).eval(),
        name="choosing",
        cameras=(CAMERA,),
        tokenizer=Tokenizer(
            file="words.json", context_length=8, pad_id=0, padding="longest", template="do : {command}"
        ),
        tokenizer_file=folder / "words.json",
        action=DiscreteSpace(vocabulary=("lift", "drop", "wait", "stop"), horizon=1, control_hz=1.0),
        example=Observation({"front": grey(1)}, "lift now"),
    )


def branching(folder: Path) -> Source:
    """An eager module with a branch; what leaves its bounds is rejected."""
    package = folder / "branching"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    scope: dict[str, Any] = {}
    exec(PACKAGE, scope)
    return Source(
        model=scope["build"](1.5).eval(),
        name="branching",
        cameras=(CAMERA,),
        action=space(dimensions("a", "b", bound=1.0), horizon=1),
        safety=Safety(mode="reject"),
        eager=Eager(package, "branching:build", {"gain": 1.0}),
        example=Observation({"front": grey(100)}),
    )
