"""PolicySpec: everything that is needed to interpret an exported policy. One file, `policy.json`.

Sizes used in the docstrings of this package:
    B  observations in a batch       C  cameras            S  dimensions of the proprioceptive state
    L  tokens of a command           T  horizon [steps]    A  dimensions of an action
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import msgspec
import numpy as np

from vla_runtime.errors import SpecError

FILE_NAME = "policy.json"

Normalisation = Literal["bounds", "mean_std", "quantiles"]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the spec: immutable, and a misspelt or unknown key is an error, never ignored."""


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
        _require(self.size > 0, f"camera {self.name!r}: size must be positive, got {self.size}")
        _require(min(self.std) > 0, f"camera {self.name!r}: std must be positive, got {self.std}")


class Tokenizer(Part, frozen=True):
    """The command's tokenizer: a `tokenizers` JSON file that lies beside the spec."""

    file: str
    # Longest command [tokens], start and end tokens included; shorter ones are padded to it.
    context_length: int
    pad_id: int


class Dimension(Part, frozen=True):
    """One named dimension of the state or of an action, with its physical unit and bounds."""

    name: str
    unit: str
    low: float
    high: float

    def __post_init__(self) -> None:
        finite = math.isfinite(self.low) and math.isfinite(self.high)
        _require(
            finite and self.low < self.high, f"{self.name}: needs low < high, got {self.low} and {self.high}"
        )


class Statistics(Part, frozen=True):
    """Normalisation statistics of the training data, one number a dimension, in physical units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]

    def sha256(self) -> str:
        """Return the digest that names these statistics in provenance."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


class Vector(Part, frozen=True):
    """A vector of named dimensions and the rule that normalises it: `(x - shift) / scale`."""

    dimensions: tuple[Dimension, ...]
    normalisation: Normalisation
    statistics: Statistics

    def __post_init__(self) -> None:
        for name, values in msgspec.structs.asdict(self.statistics).items():
            _require(
                len(values) == len(self.dimensions),
                f"statistics.{name} has {len(values)} values for the dimensions {self.names}",
            )
        for dimension, scale in zip(self.dimensions, self.scale, strict=True):
            _require(
                math.isfinite(scale) and scale > 0,
                f"{dimension.name}: {self.normalisation} normalisation needs a positive scale, got {scale}",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The dimensions' names, in order."""
        return tuple(dimension.name for dimension in self.dimensions)

    @property
    def low(self) -> np.ndarray:
        """Lower bounds: float32 [dimensions], physical units."""
        return _float32([dimension.low for dimension in self.dimensions])

    @property
    def high(self) -> np.ndarray:
        """Upper bounds: float32 [dimensions], physical units."""
        return _float32([dimension.high for dimension in self.dimensions])

    @property
    def shift(self) -> np.ndarray:
        """What normalisation subtracts: float32 [dimensions], physical units."""
        low, high = self._range()
        return _float32(self.statistics.mean) if self.normalisation == "mean_std" else (low + high) / 2

    @property
    def scale(self) -> np.ndarray:
        """What normalisation divides by: float32 [dimensions], physical units."""
        low, high = self._range()
        return _float32(self.statistics.std) if self.normalisation == "mean_std" else (high - low) / 2

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        if self.normalisation == "quantiles":
            return _float32(self.statistics.q01), _float32(self.statistics.q99)
        return self.low, self.high


class ActionSpace(Vector, frozen=True):
    """A chunk of T actions of A continuous dimensions each."""

    # Actions in a chunk [steps].
    horizon: int
    # Rate at which the robot is to execute them [Hz].
    control_hz: float
    kind: Literal["continuous"] = "continuous"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.horizon > 0, f"horizon must be positive, got {self.horizon}")
        _require(self.control_hz > 0, f"control_hz must be positive, got {self.control_hz}")


class Safety(Part, frozen=True):
    """What is done with an action outside the limits; see `safety.py`."""

    mode: Literal["clamp", "hold", "reject"] = "clamp"
    # Largest change between consecutive actions, one a dimension [action unit]; null: no limit.
    max_step: tuple[float | None, ...] | None = None
    # The action that replaces a whole chunk when it is held [action unit].
    hold_action: tuple[float, ...] | None = None
    # A chunk of lower confidence is held.
    min_confidence: float | None = None


class Artifact(Part, frozen=True):
    """The compiled policy: its file, and what its two methods take and give."""

    file: str
    # Batch sizes that batches are padded to, ascending; the last is the largest batch.
    buckets: tuple[int, ...]
    # Names of the values that `act` returns.
    outputs: tuple[str, ...]
    # Whether `act` reads its noise input.
    stochastic: bool = False
    format: Literal["torchscript"] = "torchscript"
    precision: Literal["float32"] = "float32"

    def __post_init__(self) -> None:
        _require(
            bool(self.buckets) and list(self.buckets) == sorted(set(self.buckets)) and self.buckets[0] >= 1,
            f"buckets must ascend from at least 1, got {self.buckets}",
        )
        _require("actions" in self.outputs, f"outputs must name 'actions', got {self.outputs}")


class Example(Part, frozen=True):
    """A request and its recorded answer, replayed when the artifact is loaded."""

    # Camera name -> image file beside the spec.
    images: dict[str, str]
    command: str
    # Physical units, as a client sends it.
    state: tuple[float, ...]
    seed: int
    # [T][A], physical units, as the server answers.
    actions: tuple[tuple[float, ...], ...]


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
        _require(bool(names) and len(set(names)) == len(names), f"cameras need distinct names, got {names}")
        sizes = {camera.size for camera in self.cameras}
        _require(len(sizes) == 1, f"all cameras must have one size, got {sorted(sizes)}")
        dimensions = self.action.names
        for name in ("max_step", "hold_action"):
            values = getattr(self.safety, name)
            _require(
                values is None or len(values) == len(dimensions),
                f"safety.{name} has {len(values or ())} values for the action {dimensions}",
            )
        _require(
            self.safety.mode != "hold" or self.safety.hold_action is not None,
            "safety.mode is 'hold', which needs safety.hold_action",
        )
        _require(
            self.safety.min_confidence is None
            or ("confidence" in self.artifact.outputs and self.safety.hold_action is not None),
            "safety.min_confidence needs an artifact that returns 'confidence' and a safety.hold_action",
        )

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


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


def _float32(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)
