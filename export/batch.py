"""Inputs of a policy's module, to trace with and to compare on: random ones, and a source's example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from export.source import Observation, Source
from vla_runtime.actions import normalise
from vla_runtime.module import Module
from vla_runtime.preprocessing import normalise_picture, picture, state_bins
from vla_runtime.spec import Camera


@dataclass(frozen=True)
class Layout:
    """The shapes of what a module takes and gives; see `vla_runtime.spec` for the letters."""

    cameras: tuple[Camera, ...]
    # What `act` takes and `encode_command` returns, in order; see `ArtifactSpec`.
    inputs: tuple[str, ...]
    command: tuple[str, ...]
    # Actions in a chunk [steps], and numbers of one action.
    horizon: int
    action: int
    # Tokens of the longest command, and whether shorter ones are padded to it; entries of the vocabulary.
    context_length: int = 0
    padded: bool = True
    vocabulary: int = 0
    # Numbers of a state; 0 for none.
    state: int = 0
    noise: tuple[int, ...] = ()
    history: int = 1
    # Most actions that a chunk may begin with because the robot executes them already [steps].
    max_delay: int = 0

    @classmethod
    def of(cls, source: Source, command: tuple[str, ...]) -> Self:
        """Return the layout of a source's module, whose `encode_command` returns the named tensors."""
        tokenizer, reader = source.tokenizer, source.command_tokenizer()
        inputs = [f"image.{camera.name}" for camera in source.cameras]
        inputs += [f"command.{name}" for name in command]
        inputs += [*(["state"] if source.state else []), *(["noise"] if source.noise else [])]
        inputs += ["prefix", "delay"] if source.max_delay else []
        return cls(
            cameras=source.cameras,
            inputs=tuple(inputs),
            command=command,
            horizon=source.action.horizon,
            action=source.action_width,
            context_length=tokenizer.context_length if tokenizer else 0,
            padded=tokenizer is None or tokenizer.padding == "fixed",
            vocabulary=reader.vocabulary if reader else 0,
            state=source.state.policy_width if source.state else 0,
            noise=source.noise or (),
            history=source.history,
            max_delay=source.max_delay,
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """The axis of the observation steps, where there is one."""
        return () if self.history == 1 else (self.history,)


@dataclass(frozen=True)
class Batch:
    """Inputs of one layout."""

    layout: Layout
    ids: Tensor  # int64 [B, L]
    mask: Tensor  # int64 [B, L]
    # By the name of the input: images [B, 3, H, W] or [B, n, 3, H, W], state, noise and prefix; float32.
    # The delay is int64 [B].
    tensors: Mapping[str, Tensor]

    @classmethod
    def random(cls, layout: Layout, count: int, seed: int, device: str) -> Self:
        """Draw `count` observations; padded commands have different lengths, others one."""
        generator = torch.Generator().manual_seed(seed)
        length = layout.context_length
        if not layout.padded:
            length = int(torch.randint(1, length + 1, (), generator=generator))
        tokens = torch.randint(min(3, length), length + 1, (count, 1), generator=generator)
        tensors = {}
        for camera in layout.cameras:
            shape = (count, *layout.steps, 3, camera.height, camera.width)
            pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            tensors[f"image.{camera.name}"] = normalise_picture(pixels, camera)
        tensors["state"] = torch.rand(count, *layout.steps, layout.state, generator=generator) * 2 - 1
        tensors["noise"] = torch.randn(count, *(layout.noise or (0, 0)), generator=generator)
        ids = torch.randint(0, max(1, layout.vocabulary), (count, length), generator=generator)
        mask = (torch.arange(length) < tokens).long() if layout.padded else torch.ones_like(ids)
        tensors["prefix"] = torch.rand(count, layout.horizon, layout.action, generator=generator) * 2 - 1
        tensors["delay"] = torch.randint(layout.max_delay + 1, (count,), generator=generator)
        return cls(layout, ids, mask, tensors).to(device)

    @classmethod
    def example(cls, source: Source, layout: Layout, device: str) -> Self:
        """Return a source's example as one observation, preprocessed as the server does it."""
        return cls.observed(source, layout, [source.example], device)

    @classmethod
    def observed(
        cls, source: Source, layout: Layout, observations: Sequence[Observation], device: str = "cpu"
    ) -> Self:
        """Return observations, preprocessed as the server does it; commands of one length in tokens."""
        count, tensors = len(observations), {}
        for camera in source.cameras:
            pixels = [_pixels(each, camera) for each in observations]
            tensors[f"image.{camera.name}"] = normalise_picture(torch.from_numpy(np.stack(pixels)), camera)
        measured = [np.array(each.state, np.float32).reshape(*layout.steps, -1) for each in observations]
        states = [normalise(state, source.state) if source.state else state for state in measured]
        tensors["state"] = torch.from_numpy(np.stack(states))
        generator = torch.Generator().manual_seed(0)
        tensors["noise"] = torch.randn(count, *(layout.noise or (0, 0)), generator=generator)
        tensors["prefix"] = torch.zeros(count, layout.horizon, layout.action)
        tensors["delay"] = torch.zeros(count, dtype=torch.int64)
        reader, none = source.command_tokenizer(), np.zeros(0, np.int64)
        read = [
            reader(each.command, state_bins(state, source.state, source.tokenizer))
            if reader
            else (none, none)
            for each, state in zip(observations, measured, strict=True)
        ]
        ids, mask = (torch.from_numpy(np.stack(part)) for part in zip(*read, strict=True))
        return cls(layout, ids, mask, tensors).to(device)

    def part(self, rows: slice | Tensor) -> Self:
        """Return some of the observations."""
        tensors = {name: value[rows] for name, value in self.tensors.items()}
        return type(self)(self.layout, self.ids[rows], self.mask[rows], tensors)

    def to(self, device: str) -> Self:
        """Copy the inputs to a device."""
        tensors = {name: value.to(device) for name, value in self.tensors.items()}
        return type(self)(self.layout, self.ids.to(device), self.mask.to(device), tensors)

    def run(self, module: Module) -> dict[str, Tensor]:
        """Encode the commands and act: the outputs by name."""
        return module.act(*self._inputs(self._encoded(module)))

    def calls(self, module: Module) -> dict[str, tuple[Tensor, ...]]:
        """Return the arguments of both methods, contiguous, the encoded commands among them."""
        act = tuple(value.contiguous() for value in self._inputs(self._encoded(module)))
        return {"encode_command": (self.ids, self.mask), "act": act} if self.layout.command else {"act": act}

    def _encoded(self, module: Module) -> tuple[Tensor, ...]:
        return module.encode_command(self.ids, self.mask) if self.layout.command else ()

    def _inputs(self, encoded: tuple[Tensor, ...]) -> list[Tensor]:
        names = (f"command.{name}" for name in self.layout.command)
        given = dict(self.tensors) | dict(zip(names, encoded, strict=True))
        if "images" in self.layout.inputs:
            given["images"] = torch.stack([given[f"image.{c.name}"] for c in self.layout.cameras], dim=1)
        return [given[name] for name in self.layout.inputs]


def _pixels(observation: Observation, camera: Camera) -> np.ndarray:
    """Return what one camera shows, uint8 [3, H, W], or [n, 3, H, W] with a history."""
    shown = observation.images[camera.name]
    made = [picture(Image.fromarray(p), camera) for p in (shown if isinstance(shown, tuple) else (shown,))]
    return np.stack(made) if len(made) > 1 else np.array(made[0])
