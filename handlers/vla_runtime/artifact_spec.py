"""What the compiled policy is: its file, what its two methods take and give, and where it runs."""

from typing import Any, Literal

import msgspec

from vla_runtime.vectors import Part, require

Format = Literal["torchscript", "pt2", "eager", "onnx"]
# int8_static, int8_weights and int4_weights are of `onnx` alone, see `export.onnx_quantise`.
Precision = Literal["float32", "bfloat16", "int8", "int8_static", "int8_weights", "int4_weights"]

# What `act` may return besides the chunk; every other output is declared in the artifact's `extras`.
KNOWN_OUTPUTS = ("actions", "logits", "confidence", "attention")


class Extra(Part, frozen=True):
    """How an output beyond the known ones is shown in the answer's `extras`: as it is, by label, as text."""

    # Names of the values of an output that holds indices; empty for plain numbers.
    labels: tuple[str, ...] = ()
    # What the indices of an output int64 [B, N] spell: pieces of text, joined as they are, so that each
    # has its own space; the first empty one ends the text. Empty for what is no text.
    pieces: tuple[str, ...] = ()
    # Unit of plain numbers.
    unit: str = "1"

    def __post_init__(self) -> None:
        require(
            not (self.labels and self.pieces),
            "an extra has labels, one for each index, or pieces of one text, not both",
        )
        require(
            not self.pieces or "" in self.pieces,
            f"pieces need an empty one, which ends a text, got {len(self.pieces)} others",
        )


class Platform(Part, frozen=True):
    """What machine code depends on; a package runs on nothing else."""

    device: Literal["cpu", "cuda"]
    # Version of torch, without its build.
    torch: str
    # Instruction set of the processor, as torch names it, or the accelerator's, such as `sm_90`.
    capability: str

    def __str__(self) -> str:
        return f"{self.device} ({self.capability}) under torch {self.torch}"


class ArtifactSpec(Part, frozen=True):
    """The compiled policy: its file, and what its two methods take and give."""

    file: str
    # What `encode_command` returns, in order, a batch axis first each; none for a policy without a command.
    command: tuple[str, ...]
    # What `act` takes, in order: `image.<camera>`, `command.<name>`, `state`, `noise`; or `images`, the
    # pictures of all cameras, of one size, in one tensor [B, C, 3, H, W]; `prefix` and `delay` with a
    # `max_delay`.
    inputs: tuple[str, ...]
    # Batch sizes that batches are padded to, ascending; the last is the largest batch.
    buckets: tuple[int, ...]
    # Names of the values that `act` returns.
    outputs: tuple[str, ...]
    # One for each output that is not in KNOWN_OUTPUTS.
    extras: dict[str, Extra] = msgspec.field(default_factory=dict)
    format: Format = "torchscript"
    # Of its matrix products and their weights; everything that goes in or comes out is float32.
    precision: Precision = "float32"
    # Whether float32 products may be computed in TensorFloat-32, on GPUs that have it.
    tf32: bool = False
    # Where a `pt2` package runs; None for the others, which are portable.
    platform: Platform | None = None
    # How the module of an `eager` archive is built: `package.module:function`, called with `arguments`.
    factory: str | None = None
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    # Whether workers compile the `act` of an `eager` archive while they start.
    compiled: bool = False

    def __post_init__(self) -> None:
        require(
            bool(self.buckets) and list(self.buckets) == sorted(set(self.buckets)) and self.buckets[0] >= 1,
            f"buckets must ascend from at least 1, got {self.buckets}",
        )
        require(
            (self.platform is None) == (self.format != "pt2"),
            f"format {self.format!r} and platform {self.platform} contradict each other",
        )
        require(
            (self.factory is None) == (self.format != "eager"),
            f"format {self.format!r} and factory {self.factory!r} contradict each other",
        )
        require(
            not self.compiled or self.format == "eager",
            f"compiled is for format 'eager' alone, got {self.format!r}",
        )
        further = sorted(set(self.outputs) - set(KNOWN_OUTPUTS))
        require(
            further == sorted(self.extras),
            f"outputs {further} need a declaration each in extras, which has {sorted(self.extras)}",
        )
