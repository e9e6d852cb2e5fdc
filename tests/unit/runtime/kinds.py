"""Small policies of every kind, in this process: the real request path around a module of a few lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tokenizers
import torch
from action_spaces import space
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

from vla_runtime.artifact import Artifact
from vla_runtime.images import Limits
from vla_runtime.policy import Policy
from vla_runtime.preprocessing import CommandTokenizer
from vla_runtime.spec import (
    ArtifactSpec,
    Camera,
    Dimension,
    Example,
    PolicySpec,
    Safety,
    Statistics,
    Tokenizer,
    Vector,
)

WORDS = {
    "pad": 0,
    "unknown": 1,
    "go": 2,
    "left": 3,
    "right": 4,
    "In:": 5,
    "Out:": 6,
    "-1": 7,
    "3": 8,
    "{state}": 9,
}
FRONT = Camera(name="front", width=4, height=4, resize="none", values="zero_to_one")
WRIST = Camera(name="wrist", width=6, height=2, resize="none", values="zero_to_one")
# x moves by the measured position; what it says is a difference from there.
STATE = Vector(
    dimensions=(
        Dimension(name="x", unit="m", low=-1, high=1),
        Dimension(name="opening", unit="1", low=0, high=1),
    ),
    normalisation="identity",
    statistics=Statistics(),
)

Act = Callable[..., Tensor]


class Module:
    """Acts by one function of its inputs, and remembers what it was given."""

    def __init__(self, act: Act) -> None:
        self._act = act
        self.acts: list[tuple[Tensor, ...]] = []
        self.commands: list[Tensor] = []

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        self.commands.append(input_ids.clone())
        return (torch.where(attention_mask.bool(), input_ids, 0).sum(-1, keepdim=True).float(),)

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        self.acts.append(tuple(value.clone() for value in inputs))
        return {"actions": self._act(*inputs)}


def word_tokenizer(folder: Path) -> None:
    """Write `words.json`: one token a word."""
    made = tokenizers.Tokenizer(WordLevel(WORDS, unk_token="unknown"))
    made.pre_tokenizer = WhitespaceSplit()
    made.save(str(folder / "words.json"))


def policy(
    act: Act,
    folder: Path,
    inputs: tuple[str, ...],
    *,
    threads: int = 2,
    limits: Limits | None = None,
    **fields: Any,
) -> tuple[Policy, Module]:
    """Make a policy of 2 actions of (x, gripper) that need no normalisation."""
    word_tokenizer(folder)
    commanded = any(name.startswith("command.") for name in inputs)
    compiled = ArtifactSpec(
        file="policy.ts",
        command=("words",) if commanded else (),
        inputs=inputs,
        buckets=(1, 2, 4),
        outputs=("actions",),
    )
    spec = PolicySpec(
        **{
            "name": "kind",
            "version": "1.0",
            "architecture": "any",
            "cameras": (FRONT,),
            "tokenizer": Tokenizer(file="words.json", context_length=4, pad_id=0) if commanded else None,
            "state": None,
            "action": space(normalisation="identity"),
            "safety": Safety(),
            "artifact": compiled,
            "example": Example(images={}, command="", state=(), seed=0, actions=()),
            "provenance": {},
        }
        | fields
    )
    assert msgspec.json.decode(msgspec.json.encode(spec), type=PolicySpec) == spec
    module = Module(act)
    tokenizer = CommandTokenizer(folder, spec.tokenizer) if spec.tokenizer else None
    artifact = Artifact(module, spec, torch.device("cpu"))
    return Policy(spec, tokenizer, artifact, threads=threads, limits=limits), module


def raw(grey: int, camera: Camera = FRONT) -> dict[str, object]:
    """Return a grey picture as raw pixels."""
    pixels = np.full((camera.height, camera.width, 3), grey, np.uint8)
    return {"shape": list(pixels.shape), "dtype": "uint8", "data": pixels.tobytes()}
