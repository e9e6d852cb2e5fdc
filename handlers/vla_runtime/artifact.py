"""The compiled policy on a device: batches padded to buckets, commands encoded once and cached."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vla_runtime.module import load_module
from vla_runtime.preprocessing import normalise_pictures
from vla_runtime.spec import PolicySpec

# Commands whose encoding is kept, least recently used first out.
CACHED_COMMANDS = 1024


@dataclass(frozen=True)
class Inputs:
    """One observation as tensors."""

    # uint8 [C, 3, H, W]
    pictures: np.ndarray
    # int64 [L]
    ids: np.ndarray
    # int64 [L], 1 for a token, 0 for padding
    mask: np.ndarray
    # float32 [S], normalised
    state: np.ndarray
    # float32 [T, A], or [0, 0]
    noise: np.ndarray
    # When the answer becomes worthless [s since the epoch].
    deadline_s: float


@dataclass(frozen=True)
class Outputs:
    """What the policy says to one observation."""

    # float32 [T, A], normalised; the logits [T, V] of a discrete space
    actions: np.ndarray
    # In [0, 1]
    confidence: float | None
    # float32 [C, h, w]
    attention: np.ndarray | None
    # One value of each output that the spec declares as an extra, float32 [...]
    extras: dict[str, np.ndarray]


class Artifact:
    """Runs the exported module: `artifact(observations) -> outputs`."""

    def __init__(self, folder: Path, spec: PolicySpec, device: str = "cpu") -> None:
        """Load the module of an unpacked archive.

        Raises:
            SpecError: the module is missing, damaged, or compiled for another machine.
        """
        self._module = load_module(folder, spec.artifact, device)
        self._spec = spec
        self.device = torch.device(device)
        # ids -> (command [Lc, Dc], command_mask [Lc]) on the device
        self._commands: OrderedDict[bytes, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        # Observations computed, and commands encoded for them.
        self.computed = self.encoded = 0

    @torch.inference_mode()
    def __call__(self, observations: Sequence[Inputs]) -> list[Outputs]:
        """Compute one batch, at most as many observations as the largest bucket.

        A batch is padded by repeating its first row to the next bucket; a padded row changes no real one.
        """
        count = len(observations)
        bucket = next(size for size in self._spec.artifact.buckets if size >= count)
        rows = [*observations, *[observations[0]] * (bucket - count)]
        command, command_mask = self._encode(rows)
        pictures = self._tensor([row.pictures for row in rows])
        outputs = self._module.act(
            normalise_pictures(pictures, self._spec.cameras),
            command,
            command_mask,
            self._tensor([row.state for row in rows]),
            self._tensor([row.noise for row in rows]),
        )
        self.computed += count
        arrays = {name: outputs[name].float().cpu().numpy() for name in self._spec.artifact.outputs}
        return [self._outputs(arrays, row) for row in range(count)]

    def warm_up(self, observation: Inputs) -> None:
        """Run every bucket until the module's own optimisation is over."""
        for bucket in self._spec.artifact.buckets:
            for _ in range(3):
                self([observation] * bucket)

    def _encode(self, rows: Sequence[Inputs]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return command [B, Lc, Dc] and command_mask [B, Lc], encoding only commands not seen before."""
        keys = [row.ids.tobytes() for row in rows]
        for key, row in zip(keys, rows, strict=True):
            if key not in self._commands:
                command, mask = self._module.encode_command(self._tensor([row.ids]), self._tensor([row.mask]))
                self._commands[key] = command[0], mask[0]
                self.encoded += 1
            self._commands.move_to_end(key)
        encoded = [self._commands[key] for key in keys]
        while len(self._commands) > CACHED_COMMANDS:
            self._commands.popitem(last=False)
        return torch.stack([command for command, _ in encoded]), torch.stack([mask for _, mask in encoded])

    def _tensor(self, arrays: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device)

    def _outputs(self, arrays: dict[str, np.ndarray], row: int) -> Outputs:
        return Outputs(
            actions=arrays[self._spec.action.output][row],
            confidence=float(arrays["confidence"][row]) if "confidence" in arrays else None,
            attention=arrays["attention"][row] if "attention" in arrays else None,
            extras={name: arrays[name][row] for name in self._spec.artifact.extras},
        )
