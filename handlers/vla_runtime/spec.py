"""PolicySpec: everything that is needed to interpret an exported policy. One file, `policy.json`.

Sizes used in the docstrings of this package:
    B  observations in a batch       C  cameras            S  dimensions of the proprioceptive state
    L  tokens of a command           T  horizon [steps]    A  dimensions of an action
"""

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import msgspec
import numpy as np

from vla_runtime.errors import SpecError
from vla_runtime.spaces import (
    ActionSpace,
    BinnedSpace,
    ContinuousSpace,
    Dimension,
    DiscreteSpace,
    Part,
    Rotation,
    Statistics,
    Vector,
    require,
)

# The spec's parts have one home to import from, whichever file defines them.
__all__ = [
    "FILE_NAME",
    "KNOWN_OUTPUTS",
    "ActionSpace",
    "Artifact",
    "BinnedSpace",
    "Camera",
    "ContinuousSpace",
    "Dimension",
    "DiscreteSpace",
    "Example",
    "Extra",
    "Format",
    "Part",
    "Platform",
    "PolicySpec",
    "Precision",
    "Rotation",
    "Safety",
    "Statistics",
    "Tokenizer",
    "Vector",
    "dumps",
    "load",
]

Format = Literal["torchscript", "pt2"]
Precision = Literal["float32", "bfloat16", "int8"]

FILE_NAME = "policy.json"
# What `act` may return besides the chunk; every other output is declared in the artifact's `extras`.
KNOWN_OUTPUTS = ("actions", "logits", "confidence", "attention")


class Camera(Part, frozen=True):
    """How one camera's picture becomes a tensor (CLIP's image transform, Radford et al. 2021)."""

    name: str
    # Edge of the square picture that the policy sees [pixels].
    size: int
    # Shortest edge to `size` (bicubic), then the central `size` x `size` crop.
    resize: Literal["shortest_edge_crop"] = "shortest_edge_crop"
    # Channel statistics of RGB in [0, 1].
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        require(self.size > 0, f"camera {self.name!r}: size must be positive, got {self.size}")
        require(min(self.std) > 0, f"camera {self.name!r}: std must be positive, got {self.std}")


class Tokenizer(Part, frozen=True):
    """The command's tokenizer: a `tokenizers` JSON file that lies beside the spec."""

    file: str
    # Longest command [tokens], start and end tokens included; shorter ones are padded to it.
    context_length: int
    pad_id: int


class Safety(Part, frozen=True):
    """What is done with an action outside the limits; see `safety.py`."""

    mode: Literal["clamp", "hold", "reject"] = "clamp"
    # Largest change between consecutive actions, one a dimension [action unit]; null: no limit.
    max_step: tuple[float | None, ...] | None = None
    # The action that replaces a whole chunk when it is held [action unit]; a name in a discrete space.
    hold_action: tuple[float, ...] | str | None = None
    # A chunk of lower confidence is held.
    min_confidence: float | None = None


class Extra(Part, frozen=True):
    """How an output beyond the known ones is shown in the answer's `extras`: as it is, or by label."""

    # Names of the values of an output that holds indices; empty for plain numbers.
    labels: tuple[str, ...] = ()
    # Unit of plain numbers.
    unit: str = "1"


class Platform(Part, frozen=True):
    """What machine code depends on; a package runs on nothing else."""

    device: Literal["cpu", "cuda"]
    # Version of torch, without its build.
    torch: str
    # Instruction set of the processor, as torch names it, or the accelerator's, such as `sm_90`.
    capability: str

    def __str__(self) -> str:
        return f"{self.device} ({self.capability}) under torch {self.torch}"


class Artifact(Part, frozen=True):
    """The compiled policy: its file, and what its two methods take and give."""

    file: str
    # Batch sizes that batches are padded to, ascending; the last is the largest batch.
    buckets: tuple[int, ...]
    # Names of the values that `act` returns.
    outputs: tuple[str, ...]
    # One for each output that is not in KNOWN_OUTPUTS.
    extras: dict[str, Extra] = msgspec.field(default_factory=dict)
    # Whether `act` reads its noise input.
    stochastic: bool = False
    format: Format = "torchscript"
    # Of its matrix products and their weights; everything that goes in or comes out is float32.
    precision: Precision = "float32"
    # Where a `pt2` package runs; None for `torchscript`, which is portable.
    platform: Platform | None = None

    def __post_init__(self) -> None:
        require(
            bool(self.buckets) and list(self.buckets) == sorted(set(self.buckets)) and self.buckets[0] >= 1,
            f"buckets must ascend from at least 1, got {self.buckets}",
        )
        require(
            (self.platform is None) == (self.format == "torchscript"),
            f"format {self.format!r} and platform {self.platform} contradict each other",
        )
        further = sorted(set(self.outputs) - set(KNOWN_OUTPUTS))
        require(
            further == sorted(self.extras),
            f"outputs {further} need a declaration each in extras, which has {sorted(self.extras)}",
        )


class Example(Part, frozen=True):
    """A request and its recorded answer, replayed when the artifact is loaded."""

    # Camera name -> image file beside the spec.
    images: dict[str, str]
    command: str
    # Physical units, as a client sends it.
    state: tuple[float, ...]
    seed: int
    # [T][A], physical units, as the server answers; probabilities [T][V] in a discrete space.
    actions: tuple[tuple[float, ...], ...]
    # The T chosen actions in a discrete space.
    names: tuple[str, ...] = ()


class PolicySpec(Part, frozen=True):
    """All that is needed to interpret the artifact."""

    # Name of the policy as answers and metrics show it.
    name: str
    # Version of the archive.
    version: str
    architecture: str
    # All of one size, in the order of the artifact's C axis.
    cameras: tuple[Camera, ...]
    tokenizer: Tokenizer
    # None: the policy takes no proprioceptive state.
    state: Vector | None
    action: ActionSpace
    safety: Safety
    artifact: Artifact
    example: Example
    # Where the artifact comes from: digests, versions, parity measured at export.
    provenance: dict[str, Any]
    format_version: Literal[1] = 1

    def __post_init__(self) -> None:
        names = [camera.name for camera in self.cameras]
        require(bool(names) and len(set(names)) == len(names), f"cameras need distinct names, got {names}")
        sizes = {camera.size for camera in self.cameras}
        require(len(sizes) == 1, f"all cameras must have one size, got {sorted(sizes)}")
        output = self.action.output
        require(output in self.artifact.outputs, f"outputs must name {output!r}, got {self.artifact.outputs}")
        require(
            self.safety.mode != "hold" or self.safety.hold_action is not None,
            "safety.mode is 'hold', which needs safety.hold_action",
        )
        if isinstance(self.action, DiscreteSpace):
            _check_discrete(self.action, self.safety, self.example)
        else:
            _check_limits(self.action, self.safety, "confidence" in self.artifact.outputs)

    @property
    def state_size(self) -> int:
        """S: 0 for a policy without state."""
        return len(self.state.dimensions) if self.state else 0

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `policy.json` of an unpacked archive.

        Raises:
            SpecError: the file is missing, is not JSON or breaks a rule; names the place in the file.
        """
        return load(folder / FILE_NAME, cls)

    def save(self, folder: Path) -> None:
        """Write `policy.json`, indented for people."""
        (folder / FILE_NAME).write_bytes(dumps(self))


P = TypeVar("P", bound=Part)


def load(path: Path, kind: type[P]) -> P:
    """Read one part from a JSON file.

    Raises:
        SpecError: the file is missing, is not JSON or breaks a rule; names the place in the file.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as error:
        raise SpecError(f"{path.name} is missing in {path.parent}") from error
    except msgspec.DecodeError as error:  # also ValidationError, its subclass
        raise SpecError(f"{path.name}: {error}") from error


def dumps(part: Part) -> bytes:
    """Return a part as indented JSON that ends in a newline."""
    return msgspec.json.format(msgspec.json.encode(part), indent=2) + b"\n"


def _check_discrete(space: DiscreteSpace, safety: Safety, example: Example) -> None:
    require(safety.max_step is None, "safety.max_step has no meaning for discrete actions")
    hold = safety.hold_action
    require(hold is None or isinstance(hold, str), f"safety.hold_action must name an action, got {hold}")
    require(
        safety.min_confidence is None or hold is not None,
        "safety.min_confidence needs a safety.hold_action",
    )
    for name in (*example.names, *([hold] if isinstance(hold, str) else ())):
        space.index(name)


def _check_limits(space: ContinuousSpace, safety: Safety, confident: bool) -> None:
    for name in ("max_step", "hold_action"):
        values = getattr(safety, name)
        require(
            values is None or (not isinstance(values, str) and len(values) == space.width),
            f"safety.{name} has {len(values or ())} values for the action {space.names}",
        )
    require(
        safety.min_confidence is None or (confident and safety.hold_action is not None),
        "safety.min_confidence needs an artifact that returns 'confidence' and a safety.hold_action",
    )
    for name, step in zip(space.names, safety.max_step or (), strict=False):
        require(
            step is None or name not in space.rotating,
            f"safety.max_step limits {name}, a part of a rotation, which would no longer be one",
        )
    if isinstance(safety.hold_action, tuple):
        held = np.asarray(safety.hold_action, np.float32)
        require(
            np.allclose(space.valid_rotations(held), held, atol=1e-3),
            f"safety.hold_action {safety.hold_action} holds a rotation that is none",
        )
