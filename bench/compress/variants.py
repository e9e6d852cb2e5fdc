"""The variants of a policy, and how each becomes an archive."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from archive.read import unpack
from bench.compress.tuning import smaller
from export.batch import Batch
from export.export import Options, archived
from export.flat import flattened
from export.prune import Pruning
from export.source import Observation, Source
from vla_runtime.spec import Format, Precision

Cut = Literal["none", "weights", "units"]
# Observations that set the scales of int8_static, in batches of so many.
CALIBRATING, CALIBRATION_BATCH = 256, 32
# What rounds may differ by more than an export would let pass: how much is what is measured here.
ANY = 100.0


@dataclass(frozen=True)
class Variant:
    """One way to export a policy."""

    format: Format = "torchscript"
    precision: Precision = "float32"
    # Which part of the model goes before: the smallest weights become zero, or hidden units are taken out.
    cut: Cut = "none"

    @property
    def name(self) -> str:
        """How the table calls it; it names the archive too."""
        words = (
            self.format,
            self.precision,
            {"none": "", "weights": "zeros", "units": "fewer units"}[self.cut],
        )
        return ", ".join(word for word in words if word)

    @property
    def file(self) -> str:
        """The archive's name."""
        return f"{self.name.replace(', ', '-').replace(' ', '_')}.mar"


BASELINE = Variant()
VARIANTS = (
    BASELINE,
    Variant("eager"),
    Variant("pt2"),
    Variant("onnx"),
    Variant(precision="bfloat16"),
    Variant(precision="int8"),
    Variant("onnx", "int8"),
    Variant("onnx", "int8_static"),
    Variant("onnx", "int8_weights"),
    Variant("onnx", "int4_weights"),
    Variant(cut="weights"),
    Variant(cut="units"),
    Variant("onnx", cut="units"),
    Variant("onnx", "int8_static", cut="units"),
)


class Maker:
    """Makes a policy's archives; what two variants share is made once."""

    def __init__(self, source: Source, observations: Sequence[Observation], share: float, steps: int) -> None:
        """Make variants of a source.

        Args:
            source: the policy
            observations: what pruned models are tuned on, the first of them what int8_static is calibrated on
            share: of the weights, or of the units, that goes
            steps: of tuning
        """
        self._observations, self._steps = list(observations), steps
        self._pruning = {"weights": Pruning(prune_weights=share), "units": Pruning(prune_units=share)}
        self._sources: dict[Cut, Source] = {"none": source}

    def archive(self, variant: Variant, output: Path) -> None:
        """Write a variant's archive.

        Raises:
            ExportError: the policy has no such variant.
        """
        source = self._source(variant.cut)
        tolerance = None if variant.precision == "float32" else ANY
        options = Options(
            source.name, output, format=variant.format, precision=variant.precision, tolerance=tolerance
        )
        static = variant.precision == "int8_static"
        whole = output.with_name(Variant("onnx", cut=variant.cut).file)
        with tempfile.TemporaryDirectory() as temporary:
            rounds = variant.format == "onnx" and whole.is_file()
            folder = unpack(whole, Path(temporary)) if rounds else None
            seen = self._calibrating(source) if static else ()
            archived(source, options, observations=seen, converted=folder)

    def _source(self, cut: Cut) -> Source:
        if cut not in self._sources:
            whole = self._sources["none"]
            self._sources[cut] = smaller(whole, self._pruning[cut], self._observations, self._steps)
        return self._sources[cut]

    def _calibrating(self, source: Source) -> list[Batch]:
        _, layout = flattened(source)
        batches = range(0, CALIBRATING, CALIBRATION_BATCH)
        parts = (self._observations[at : at + CALIBRATION_BATCH] for at in batches)
        return [Batch.observed(source, layout, part) for part in parts if part]
