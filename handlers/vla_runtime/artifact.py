"""The compiled policy on a device: batches padded to buckets, commands encoded once and cached."""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vla_runtime.device import prepare
from vla_runtime.graphs import Forward, Graphs, check_replay
from vla_runtime.module import Module, load_module
from vla_runtime.preprocessing import normalise_picture
from vla_runtime.spec import PolicySpec
from vla_runtime.staging import Inputs, Staging
from vla_runtime.turns import ALONE

# Memory of the encoded commands that are kept, least recently used first out [bytes].
CACHE_BYTES = 64 << 20


@dataclass(frozen=True)
class Outputs:
    """What the policy says to one observation."""

    # float32 [T, A], normalised; the logits [T, V] of a discrete space
    actions: np.ndarray
    # In [0, 1]
    confidence: float | None
    # float32 [C, h, w]
    attention: np.ndarray | None
    # One value of each output that the spec declares as an extra, float32 or int64 [...]
    extras: dict[str, np.ndarray]


class Commands:
    """Encoded commands by their tokens: the text tower runs once for each that is new."""

    def __init__(self, module: Module, spec: PolicySpec, device: torch.device) -> None:
        self._encode_command, self._buckets, self._device = module, spec.artifact.buckets, device
        self._count = len(spec.artifact.command)
        # Tokens -> what `encode_command` returns for them, without the batch axis, on the device.
        self._kept: OrderedDict[bytes, tuple[Tensor, ...]] = OrderedDict()
        self._bytes = 0
        # Commands encoded so far.
        self.encoded = 0

    def __call__(self, rows: Sequence[Inputs]) -> list[Tensor]:
        """Return the rows' commands, one tensor [B, ...] each that `encode_command` returns."""
        if not self._count:
            return []
        keys = [row.ids.tobytes() + row.mask.tobytes() for row in rows]
        self._encode({key: row for key, row in zip(keys, rows, strict=True) if key not in self._kept})
        for key in keys:
            self._kept.move_to_end(key)
        encoded = [self._kept[key] for key in keys]
        while self._bytes > CACHE_BYTES and len(self._kept) > 1:
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])
        return [torch.stack(column) for column in zip(*encoded, strict=True)]

    def warm_up(self, like: Inputs) -> None:
        """Encode batches of every size that new commands may come in: the first is slow."""
        if not self._count:
            return
        ids, mask = (torch.from_numpy(tokens).to(self._device) for tokens in (like.ids, like.mask))
        for size in self._buckets:
            self._encode_command.encode_command(ids.expand(size, -1), mask.expand(size, -1))

    def _encode(self, new: dict[bytes, Inputs]) -> None:
        """Encode commands of one length together, padded to a bucket, and keep them."""
        if not new:
            return
        rows = list(new.values())
        size = next(size for size in self._buckets if size >= len(rows))
        rows += [rows[0]] * (size - len(rows))
        ids = torch.from_numpy(np.stack([row.ids for row in rows])).to(self._device)
        mask = torch.from_numpy(np.stack([row.mask for row in rows])).to(self._device)
        columns = self._encode_command.encode_command(ids, mask)
        for index, key in enumerate(new):
            # Clones, since a view would keep its whole batch alive.
            self._kept[key] = tuple(column[index].clone() for column in columns)
            self._bytes += _bytes(self._kept[key])
        self.encoded += len(new)


class Bucket:
    """Batches of one size: their memory on the device, and the forward pass over it."""

    def __init__(
        self,
        staging: Staging,
        command: Sequence[Tensor],
        forward: Forward,
        turn: AbstractContextManager[None],
    ) -> None:
        """Compose a bucket: `forward` reads what `staging` and `command` hold, in its turn on the device."""
        self.staging, self._command, self._forward, self._turn = staging, command, forward, turn

    def __call__(
        self, rows: Sequence[Inputs], command: Sequence[Tensor], *, attention: bool = True
    ) -> dict[str, np.ndarray]:
        """Compute one batch: the outputs by name, in memory of their own; `attention` where it is wanted."""
        self.staging.fill(rows)
        for memory, value in zip(self._command, command, strict=True):
            memory.copy_(value)
        with self._turn:
            outputs = self._forward()
            return _to_host(
                {name: value for name, value in outputs.items() if attention or name != "attention"}
            )


class Artifact:
    """Runs the exported module: `artifact(observations) -> outputs`."""

    def __init__(
        self,
        module: Module,
        spec: PolicySpec,
        device: torch.device,
        *,
        graphs: bool = True,
        turn: AbstractContextManager[None] = ALONE,
    ) -> None:
        """Compose an artifact of a module that lies on `device`, from `device.prepare`.

        On a GPU each bucket is captured as a CUDA graph, unless `graphs` says not to. Batches are computed
        inside `turn`.
        """
        self.device, self._module, self._spec = device, module, spec
        self._turn = turn
        self.commands = Commands(self._module, spec, self.device)
        self._graphs = Graphs(self.device, wanted=graphs)
        # Batch size and tokens of a command -> its memory.
        self._buckets: dict[tuple[int, int], Bucket] = {}
        # Observations computed.
        self.computed = 0

    @classmethod
    def load(
        cls,
        folder: Path,
        spec: PolicySpec,
        device: str = "cpu",
        turn: AbstractContextManager[None] = ALONE,
    ) -> Self:
        """Load the module of an unpacked archive.

        Raises:
            SpecError: the module is missing, damaged, or compiled for another machine.
        """
        place = prepare(device, tf32=spec.artifact.tf32)
        # ONNX Runtime launches its kernels on streams of its own, which no graph of torch's captures.
        graphs = spec.artifact.format != "onnx"
        return cls(load_module(folder, spec.artifact, str(place)), spec, place, graphs=graphs, turn=turn)

    @torch.inference_mode()
    def __call__(self, observations: Sequence[Inputs], *, attention: bool = True) -> list[Outputs]:
        """Compute one batch, at most as many observations as the largest bucket, commands of equal length.

        A batch is padded by repeating its first row to the next bucket; a padded row changes no real one.
        Without `attention` the maps stay on the device.
        """
        count = len(observations)
        size = next(size for size in self._spec.artifact.buckets if size >= count)
        rows = [*observations, *[observations[0]] * (size - count)]
        with self._graphs.stream():
            command = self.commands(rows)
            arrays = self._bucket(rows, command)(rows, command, attention=attention)
        self.computed += count
        return [self._outputs(arrays, row) for row in range(count)]

    @property
    def graphs(self) -> bool:
        """Whether batches are replayed as CUDA graphs."""
        return self._graphs.enabled

    def warm_up(self, observation: Inputs, other: Inputs) -> None:
        """Run every bucket until the module's own optimisation is over; check each graph on two inputs.

        Raises:
            SpecError: a captured graph answers otherwise than the module itself.
        """
        with torch.inference_mode(), self._graphs.stream():
            self.commands.warm_up(observation)
        for size in self._spec.artifact.buckets:
            for _ in range(3):
                self([observation] * size)
            self._check([observation] * size, [other] * size)

    @torch.inference_mode()
    def _check(self, *batches: list[Inputs]) -> None:
        """Compare what a bucket's graph answers to several batches with the module itself."""
        if not self._graphs.enabled:
            return
        chunk = self._spec.action.output
        pairs = []
        with self._graphs.stream():
            for rows in batches:
                command = self.commands(rows)
                bucket = self._bucket(rows, command)
                replayed = bucket(rows, command)
                computed = _to_host(self._act(bucket.staging, command))
                pairs.append((replayed[chunk], computed[chunk]))
        check_replay(pairs, len(batches[0]))

    def _bucket(self, rows: Sequence[Inputs], command: Sequence[Tensor]) -> Bucket:
        key = (len(rows), len(rows[0].ids))
        if key not in self._buckets:
            staging = Staging(self._used(rows[0]), len(rows), self.device)
            memory = [value.clone() for value in command]
            staging.fill(rows)
            forward = self._graphs.capture(partial(self._act, staging, memory), len(rows))
            self._buckets[key] = Bucket(staging, memory, forward, self._turn)
        return self._buckets[key]

    def _used(self, row: Inputs) -> Inputs:
        """Keep what the module reads; `images` stands for the pictures of all cameras."""
        names = set(self._spec.artifact.inputs)
        kept = {
            name: value
            for name, value in row.tensors.items()
            if name in names or ("images" in names and name.startswith("image."))
        }
        return replace(row, tensors=kept)

    def _act(self, staging: Staging, command: Sequence[Tensor]) -> dict[str, Tensor]:
        """Run the module on what the memory holds."""
        artifact, cameras = self._spec.artifact, {f"image.{c.name}": c for c in self._spec.cameras}
        given = dict(zip((f"command.{name}" for name in artifact.command), command, strict=True))
        for name, tensor in staging.tensors.items():
            given[name] = normalise_picture(tensor, cameras[name]) if name in cameras else tensor
        if "images" in artifact.inputs:
            given["images"] = torch.stack([given[name] for name in cameras], dim=1)
        outputs = self._module.act(*(given[name] for name in artifact.inputs))
        return {name: outputs[name] for name in artifact.outputs}

    def _outputs(self, arrays: dict[str, np.ndarray], row: int) -> Outputs:
        return Outputs(
            actions=arrays[self._spec.action.output][row],
            confidence=float(arrays["confidence"][row]) if "confidence" in arrays else None,
            attention=arrays["attention"][row] if "attention" in arrays else None,
            extras={name: arrays[name][row] for name in self._spec.artifact.extras},
        )


def _to_host(outputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Copy outputs [B, ...] to the host in one piece, into memory of their own: float32, integers int64.

    On the way all are float32, which holds integers up to 2**24.
    """
    rows = len(next(iter(outputs.values())))
    flat = torch.cat([value.reshape(rows, -1).float() for value in outputs.values()], dim=1).cpu().numpy()
    ends = np.cumsum([value[0].numel() for value in outputs.values()])
    parts = np.split(flat, ends[:-1], axis=1)
    found = dict[str, np.ndarray]()
    for (name, value), part in zip(outputs.items(), parts, strict=True):
        exact = part if value.is_floating_point() else part.astype(np.int64)
        found[name] = exact.reshape(value.shape)
    return found


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
