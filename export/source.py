"""A policy as export takes it, whoever trained it: `Source`, and the two methods of its module.

    def make() -> Source: ...        # in a file of your own, then `python -m export policy.py:make`

docs/your-own-policy.md walks through one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from torch import Tensor, nn

from vla_runtime.errors import SpecError
from vla_runtime.preprocessing import CommandTokenizer
from vla_runtime.spec import (
    ActionSpace,
    ArtifactSpec,
    Camera,
    ContinuousSpace,
    Example,
    Extra,
    PolicySpec,
    Safety,
    Tokenizer,
    Vector,
)


@runtime_checkable
class ExportableModel(Protocol):
    """An `nn.Module` in evaluation mode. Neither method draws random numbers or depends on the batch's size.

    A policy without a command needs `act` alone, and is given an empty `command`.
    """

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Encode commands, once for each that is new.

        Args:
            input_ids: int64 [N, L]
            attention_mask: int64 [N, L], 1 for a token, 0 for padding

        Returns:
            named tensors [N, ...] of any type, which `act` gets back
        """
        ...

    def act(
        self, images: dict[str, Tensor], command: dict[str, Tensor], state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Compute one chunk for each observation. With a history of n steps there is an axis n, oldest first.

        Args:
            images: by camera float32 [B, 3, H, W], or [B, n, 3, H, W], values as the camera says
            command: what `encode_command` returned, [B, ...]
            state: float32 [B, S], or [B, n, S], normalised; [B, 0] without a state
            noise: float32 [B, *shape], standard normal; [B, 0] without noise

        Returns:
            "actions" float32 [B, T, A], normalised, or "logits" float32 [B, T, V] of a discrete space;
            optional "confidence" float32 [B] in [0, 1], "attention" float32 [B, C, h, w], non-negative;
            any further output that the source's `extras` declare

        With a `max_delay` it takes two further tensors: `prefix` float32 [B, T, A], normalised, and `delay`
        int64 [B]. The first `delay` actions of each row are those of `prefix`.

        One that takes gradients has an attribute `differentiates` of True; its format is `pt2` or `eager`.
        """
        ...


@dataclass(frozen=True)
class Observation:
    """A request as a robot would send it: export computes it, every worker checks its answer at load."""

    # By camera uint8 [H, W, 3], RGB, of any size that the camera's rule takes; n of them, oldest first, with
    # a history.
    images: Mapping[str, np.ndarray | tuple[np.ndarray, ...]]
    # Empty for a policy without a command.
    command: str = ""
    # Physical units; n tuples with a history, none for a policy without a state.
    state: tuple[float | tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Eager:
    """How a worker builds the module of an `eager` archive; its weights are the model's `state_dict`."""

    # Folder of the Python package that the archive carries. It may import torch, numpy and itself.
    package: Path
    # `package.module:function`, which returns an `ExportableModel`.
    factory: str
    # Its keyword arguments: numbers, texts, lists and dicts of them.
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Everything that export needs to know of a policy; `vla_runtime.spec` explains the parts."""

    # An `nn.Module` with the methods of `ExportableModel`, on the CPU and in evaluation mode.
    model: nn.Module
    # Name of the policy as answers and metrics show it.
    name: str
    cameras: tuple[Camera, ...]
    # What the actions mean, with the statistics that normalise them. There is no default for them.
    action: ActionSpace
    example: Observation
    # None: the policy takes no proprioceptive state.
    state: Vector | None = None
    # None: the policy takes no command.
    tokenizer: Tokenizer | None = None
    # The `tokenizers` JSON file itself.
    tokenizer_file: Path | None = None
    # Observation steps in a request.
    history: int = 1
    # Shape of one observation's noise; None: the policy draws none.
    noise: tuple[int, ...] | None = None
    # Most actions that a chunk may begin with because the robot executes them already [steps]; 0: `act`
    # takes no `prefix` and no `delay`.
    max_delay: int = 0
    safety: Safety = field(default_factory=Safety)
    # How answers show outputs beyond the known ones.
    extras: dict[str, Extra] = field(default_factory=dict)
    architecture: str = "custom"
    # Whether the weights of its matrix products are bfloat16 already, which `export.lower` computes with: the
    # policy is to be served in that precision then.
    lowered: bool = False
    # For format `eager` alone.
    eager: Eager | None = None
    # Whatever is known of where the weights come from; archived with the policy.
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module) or not callable(getattr(self.model, "act", None)):
            raise SpecError(
                f"model must be an nn.Module with a method `act`, got {type(self.model).__name__}: "
                "see docs/your-own-policy.md"
            )
        if (self.tokenizer is None) != (self.tokenizer_file is None):
            raise SpecError("tokenizer and tokenizer_file come together, or not at all")
        if self.tokenizer and not callable(getattr(self.model, "encode_command", None)):
            raise SpecError("the policy takes a command, so its model needs a method `encode_command`")
        for camera in self.cameras:
            self._check_example(camera)
        if bool(self.tokenizer) != bool(self.example.command):
            raise SpecError(
                f"the example's command is {self.example.command!r}, and the policy takes "
                f"{'one' if self.tokenizer else 'none: leave it out'}"
            )

    def command_tokenizer(self) -> CommandTokenizer | None:
        """Return the tokenizer that the policy reads commands with, None without a command.

        Raises:
            SpecError: its file is missing or is no tokenizer.
        """
        if self.tokenizer is None or self.tokenizer_file is None:
            return None
        here = msgspec.structs.replace(self.tokenizer, file=self.tokenizer_file.name)
        return CommandTokenizer(self.tokenizer_file.parent, here)

    def spec(
        self, version: str, artifact: ArtifactSpec, example: Example, provenance: dict[str, Any]
    ) -> PolicySpec:
        """Return what an archive of this policy says of it.

        Raises:
            SpecError: artifact or example do not fit the policy.
        """
        return PolicySpec(
            name=self.name,
            version=version,
            architecture=self.architecture,
            cameras=self.cameras,
            tokenizer=self.tokenizer,
            state=self.state,
            action=self.action,
            safety=self.safety,
            artifact=artifact,
            history=self.history,
            noise=self.noise,
            max_delay=self.max_delay,
            example=example,
            provenance=provenance,
        )

    @property
    def action_width(self) -> int:
        """Numbers that the policy itself gives for one action."""
        space = self.action
        return space.policy_width if isinstance(space, ContinuousSpace) else space.width

    def _check_example(self, camera: Camera) -> None:
        found = self.example.images.get(camera.name)
        if found is None:
            raise SpecError(
                f"the example has no picture of camera {camera.name!r}; it has: "
                f"{', '.join(self.example.images) or 'none'}"
            )
        steps = found if isinstance(found, tuple) else (found,)
        if len(steps) != self.history:
            raise SpecError(
                f"the example needs {self.history} pictures of camera {camera.name!r}, got {len(steps)}"
            )
        for pixels in steps:
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
                raise SpecError(
                    f"the example's picture of {camera.name!r} must be uint8 [height, width, 3], got "
                    f"{pixels.dtype} {list(pixels.shape)}"
                )
