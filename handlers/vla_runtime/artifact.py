"""The compiled policy on a device: batches padded to buckets, commands encoded once and cached."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vla_runtime.graphs import Forward, capture
from vla_runtime.module import load_module
from vla_runtime.preprocessing import normalise_pictures
from vla_runtime.spec import PolicySpec
from vla_runtime.staging import Inputs, Staging

# Commands whose encoding is kept, least recently used first out.
CACHED_COMMANDS = 1024


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


class Bucket:
    """Batches of one size: their memory on the device, and the forward pass over it."""

    def __init__(self, artifact: "Artifact", size: int, like: Inputs) -> None:
        self.size = size
        self.staging = Staging(like, size, artifact.device)
        command, mask = artifact.encode([like] * size)
        # Memory of the encoded commands: [B, Lc, Dc], bool [B, Lc].
        self.command, self.mask = command.clone(), mask.clone()
        self._forward: Forward = lambda: artifact.act(self)
        if artifact.device.type == "cuda":
            self.staging.fill([like] * size)
            self._forward = capture(self._forward, artifact.device, size)

    def __call__(
        self, rows: Sequence[Inputs], command: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, np.ndarray]:
        """Compute `size` observations: the outputs by name, in memory of their own."""
        self.staging.fill(rows)
        self.command.copy_(command)
        self.mask.copy_(mask)
        return {name: value.float().cpu().numpy() for name, value in self._forward().items()}


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
        self._buckets: dict[int, Bucket] = {}
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
        size = next(size for size in self._spec.artifact.buckets if size >= count)
        rows = [*observations, *[observations[0]] * (size - count)]
        if size not in self._buckets:
            self._buckets[size] = Bucket(self, size, rows[0])
        arrays = self._buckets[size](rows, *self.encode(rows))
        self.computed += count
        return [self._outputs(arrays, row) for row in range(count)]

    def warm_up(self, observation: Inputs) -> None:
        """Run every bucket until the module's own optimisation is over."""
        for bucket in self._spec.artifact.buckets:
            for _ in range(3):
                self([observation] * bucket)

    def act(self, bucket: Bucket) -> dict[str, torch.Tensor]:
        """Run the module on what the bucket's memory holds."""
        staging = bucket.staging
        pictures = normalise_pictures(staging.pictures, self._spec.cameras)
        outputs = self._module.act(pictures, bucket.command, bucket.mask, staging.state, staging.noise)
        return {name: outputs[name] for name in self._spec.artifact.outputs}

    def encode(self, rows: Sequence[Inputs]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return command [B, Lc, Dc] and command_mask [B, Lc], encoding only commands not seen before."""
        keys = [row.ids.tobytes() for row in rows]
        self._encode({key: row for key, row in zip(keys, rows, strict=True) if key not in self._commands})
        for key in keys:
            self._commands.move_to_end(key)
        encoded = [self._commands[key] for key in keys]
        while len(self._commands) > CACHED_COMMANDS:
            self._commands.popitem(last=False)
        return torch.stack([command for command, _ in encoded]), torch.stack([mask for _, mask in encoded])

    def _encode(self, new: dict[bytes, Inputs]) -> None:
        """Encode commands together, padded to a bucket, and keep them."""
        if not new:
            return
        rows = list(new.values())
        size = next(size for size in self._spec.artifact.buckets if size >= len(rows))
        rows += [rows[0]] * (size - len(rows))
        ids = torch.from_numpy(np.stack([row.ids for row in rows])).to(self.device)
        mask = torch.from_numpy(np.stack([row.mask for row in rows])).to(self.device)
        commands, masks = self._module.encode_command(ids, mask)
        for index, key in enumerate(new):
            # Clones, since a view would keep its whole batch alive.
            self._commands[key] = commands[index].clone(), masks[index].clone()
        self.encoded += len(new)

    def _outputs(self, arrays: dict[str, np.ndarray], row: int) -> Outputs:
        return Outputs(
            actions=arrays[self._spec.action.output][row],
            confidence=float(arrays["confidence"][row]) if "confidence" in arrays else None,
            attention=arrays["attention"][row] if "attention" in arrays else None,
            extras={name: arrays[name][row] for name in self._spec.artifact.extras},
        )
