"""Source to archive, as one list of steps."""

import contextlib
import dataclasses
import gc
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import tyro
from PIL import Image
from torch import nn

from archive.digest import digest
from archive.read import unpack
from export import eager, onnx_file, onnx_quantise
from export.archive import Model, Timeouts, model_config, write_archive
from export.batch import Batch
from export.errors import ExportError
from export.find import find
from export.flat import flattened
from export.foreign.facts import Facts
from export.lower import Exact, Lowered
from export.package import package
from export.prune import Pruning, pruned
from export.quantise import quantised
from export.saturate import saturating
from export.source import Source
from export.target import Target
from export.trace import trace
from export.verify import SEEDS, TOLERANCES, Parity, answered, compare
from vla_runtime.actions import example_tolerance
from vla_runtime.errors import RequestError, SpecError
from vla_runtime.images import Limits
from vla_runtime.module import load_module, platform_of
from vla_runtime.policy import Policy
from vla_runtime.spec import (
    ArtifactSpec,
    BinnedSpace,
    DiscreteSpace,
    Example,
    Format,
    PolicySpec,
    Precision,
    Vector,
)

NOTHING_PRUNED = Pruning()
# Precisions that one format has.
ONNX_ONLY = ("int8_static", "int8_weights", "int4_weights")
FILES: dict[Format, str] = {
    "torchscript": "policy.ts",
    "pt2": "policy.pt2",
    "eager": "policy.safetensors",
    "onnx": "policy.onnx",
}


@dataclass(frozen=True)
class Options:
    """What to export, and how it is to be served."""

    # Your policy as `policy.py:make` (docs/your-own-policy.md), or the folder of a checkpoint; with --from,
    # the folder of another library's (docs/import.md).
    policy: tyro.conf.Positional[str]
    # The archive to write; its name without `.mar` is the model's name in the URL.
    output: Path = Path("model_store/vla.mar")
    # Version of the archive: the last part of /predictions/vla/<version>.
    version: str = "1.0"
    # Batch sizes [requests] that batches are padded to; the largest is the most of one batch.
    buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    # Worker processes. A second one serves small policies to more robots, for twice the memory.
    workers: int = 1
    # torchscript runs anywhere; pt2 (AOTInductor) is machine code for this machine, and needs g++ here; eager
    # takes your Python package along, for modules that can't be traced; onnx is computed by ONNX Runtime,
    # which must be installed here and there.
    format: Format = "torchscript"
    # Of the matrix products and their weights; bfloat16 halves the weights and rounds to 0.4 %. int8 is for
    # torchscript on a CPU, and onnx: a quarter of the weights' size. int8_weights and int4_weights are for
    # onnx; so is int8_static, which needs observations that only `python -m bench compress` gives. An eager
    # module is served as it is built.
    precision: Precision = "float32"
    # What is taken out of the model before it is compiled. The archive is compared with what is left.
    prune: Pruning = NOTHING_PRUNED
    # Let GPUs compute float32 products in TensorFloat-32: faster, with 10 bits instead of 23.
    tf32: bool = False
    # Let workers compile an eager module while they start: it takes tens of seconds, and g++ there.
    compile: bool = False
    # Where a pt2 runs: it is compiled for the device of this machine.
    device: Literal["cpu", "cuda"] = "cpu"
    # Allowed difference of model and artifact, in normalised units: the largest in float32 (default 1e-4),
    # the root mean square in what rounds (default 0.05; int8_static 0.1, int4_weights 0.2).
    tolerance: float | None = None
    # A batch that takes longer is given up, and its worker replaced [s]; by default 5, or four times what the
    # largest batch takes here, where that is more.
    response_timeout_s: int | None = None
    # What decoding a request's pictures may cost.
    limits: Limits = field(default_factory=Limits)
    # With --from: what the folder does not say.
    facts: Facts = field(default_factory=Facts)


def export(options: Options) -> PolicySpec:
    """Find, compile, verify, describe and archive one policy.

    Returns:
        the spec that the archive carries

    Raises:
        SpecError: the source lacks something or contradicts itself.
        ExportError: there is no such source, or the artifact does not do what the model does.
    """
    source = find(options.policy, options.facts, options.precision)
    options = dataclasses.replace(options, output=options.output.expanduser())
    return archived(source, options, release=True)


def archived(
    source: Source,
    options: Options,
    *,
    release: bool = False,
    observations: Sequence[Batch] = (),
    converted: Path | None = None,
) -> PolicySpec:
    """Compile, verify, describe and archive one source; see `export`.

    `release` frees the source's weights as soon as they are written, so that memory never holds two copies.
    What `observations` show sets the scales of int8_static. With `converted`, the folder of the source's ONNX
    files in float32, the model is not converted again.
    """
    if options.precision == "int8_static" and not observations:
        raise ExportError("int8_static is calibrated on observations: use python -m bench compress")
    if options.prune:
        facts = source.provenance | {"pruned": asdict(options.prune)}
        source = dataclasses.replace(source, model=pruned(source.model, options.prune), provenance=facts)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file in converted.glob("*.onnx") if converted else ():
            shutil.copy(file, folder)
        artifact, parity, found = _compile(source, options, folder, observations, release=release)
        spec = _describe(source, options, folder, artifact, found)
        largest, size = max(options.buckets), (folder / artifact.file).stat().st_size
        timeouts = Timeouts.of(options.response_timeout_s, options.buckets, parity.took_s, size)
        config = model_config(largest, options.workers, timeouts, options.limits)
        _say(f"packing {options.output}")
        model = Model(options.output.stem, options.version, largest, timeouts.startup_s)
        write_archive(folder, model, config, options.output)
    _reopen(options.output, options.device)
    size = options.output.stat().st_size
    _say(f"{options.output}: {size / 1e6:.1f} MB, SHA-256 {digest(options.output)}")
    return spec


def _compile(
    source: Source, options: Options, folder: Path, observations: Sequence[Batch], *, release: bool
) -> tuple[ArtifactSpec, Parity, dict[str, Any]]:
    """Make the artifact in a folder, and compare it with the model.

    Returns:
        the artifact's description, and what the comparison found, as it is and for the archive's provenance
    """
    target = _target(source, options)
    flat, layout = flattened(source)
    model: Any = flat.to(target.device)
    _say(f"{target.format} in {target.precision}: {source.name} ({source.architecture}) of {options.policy}")
    makers = {"torchscript": trace, "pt2": package, "eager": eager.save, "onnx": onnx_file.save}
    example = Batch.example(source, layout, target.device)
    with Exact() if source.lowered else contextlib.nullcontext():
        answers = answered(model, layout, target, [example], say=_say)
    lowered: Any = _in_precision(model, target, in_place=release)
    outputs = makers[target.format](lowered, layout, folder / FILES[target.format], target)
    if target.precision in ONNX_ONLY or (target.format == "onnx" and target.precision == "int8"):
        onnx_quantise.quantise(folder / FILES["onnx"], target.precision, lowered, observations)
    if release:
        lowered.to("meta")
    artifact = ArtifactSpec(
        file=FILES[target.format],
        command=layout.command,
        inputs=layout.inputs,
        buckets=tuple(sorted(options.buckets)),
        outputs=outputs,
        extras=source.extras,
        format=target.format,
        precision=target.precision,
        tf32=options.tf32,
        compiled=options.compile,
        platform=platform_of(target.device) if target.format == "pt2" else None,
        **eager.described(source, folder) if target.format == "eager" else {},
    )
    tolerance = TOLERANCES[target.precision] if options.tolerance is None else options.tolerance
    loaded = load_module(folder, artifact, target.device)
    parity = compare(answers, loaded, layout, target, tolerance, say=_say)
    return artifact, parity, _parity_record(parity, tolerance, target, source)


def _target(source: Source, options: Options) -> Target:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ExportError("device is 'cuda', but this machine has no GPU that torch can use")
    if options.format == "eager" and options.precision != "float32":
        raise ExportError(
            f"precision {options.precision!r} is none of format 'eager', which serves the module as its "
            "factory builds it: build it in that precision"
        )
    if options.format == "onnx" and (options.precision == "bfloat16" or options.device != "cpu"):
        raise ExportError(
            "format 'onnx' is exported on device 'cpu', and not in bfloat16; GPUs compute it all the same"
        )
    if options.precision in ONNX_ONLY and options.format != "onnx":
        raise ExportError(f"precision {options.precision!r} is of format 'onnx', got {options.format!r}")
    if options.compile and options.format != "eager":
        raise ExportError(f"--compile is for format 'eager' alone, got {options.format!r}")
    return Target(
        largest_batch=max(options.buckets),
        format=options.format,
        precision=options.precision,
        device=options.device,
        output=source.action.output,
    )


def _in_precision(model: nn.Module, target: Target, *, in_place: bool) -> nn.Module:
    """Return the model to compile: the same one in float32, else one in the target's precision."""
    if target.format == "onnx":  # whose file is quantised, not the model
        return model
    if target.precision == "int8":
        return quantised(model, target)
    if target.precision == "bfloat16":
        return Lowered(model, target.device, in_place=in_place)
    return model


def _parity_record(parity: Parity, tolerance: float, target: Target, source: Source) -> dict[str, Any]:
    """Return what the comparison found, for the provenance, and print its summary."""
    summary = parity.summary()
    _say(
        f"verified at batch sizes {list(parity.batch_sizes)}: largest difference "
        f"{summary['largest_difference']:.1e}, root mean square {summary['root_mean_square']:.1e}"
    )
    judged = "largest_difference" if target.precision == "float32" else "root_mean_square"
    about = {
        "batch_sizes": parity.batch_sizes,
        "seeds": SEEDS,
        "tolerance": tolerance,
        "judged_by": judged,
    }
    return {"parity": about | summary, "precision_loss": parity.loss(source.action)}


def _describe(
    source: Source, options: Options, folder: Path, artifact: ArtifactSpec, found: dict[str, Any]
) -> PolicySpec:
    """Write `policy.json` and what it refers to into the artifact's folder, with the example's answer."""
    if source.tokenizer and source.tokenizer_file:
        shutil.copy(source.tokenizer_file, folder / source.tokenizer.file)
    example = Example(
        images=_write_pictures(source, folder),
        command=source.example.command,
        state=source.example.state,
        seed=0,
        actions=(),
    )
    served = dataclasses.replace(source, action=saturating(source.action))
    spec = served.spec(options.version, artifact, example, _provenance(source) | found)
    spec.save(folder)
    spec = msgspec.structs.replace(
        spec,
        example=_answered(spec, folder, options.device),
        provenance=spec.provenance | {"example_tolerance": _example_tolerance(spec)},
    )
    spec.save(folder)
    return spec


def _write_pictures(source: Source, folder: Path) -> dict[str, str | tuple[str, ...]]:
    """Write the example's pictures as PNG files, and return their names by camera."""
    names: dict[str, str | tuple[str, ...]] = {}
    for camera in source.cameras:
        shown = source.example.images[camera.name]
        steps = shown if isinstance(shown, tuple) else (shown,)
        files = [f"example.{camera.name}.{step}.png" for step in range(len(steps))]
        files = files if source.history > 1 else [f"example.{camera.name}.png"]
        for file, pixels in zip(files, steps, strict=True):
            Image.fromarray(pixels).save(folder / file)
        names[camera.name] = tuple(files) if source.history > 1 else files[0]
    return names


def _answered(spec: PolicySpec, folder: Path, device: str) -> Example:
    """Record the policy's answer to the example request."""
    policy = Policy.load(folder, device, threads=1, replay=False)
    answer = policy.infer([policy.example_row(folder)])[0]
    if isinstance(answer, RequestError):
        raise SpecError(f"the source's example is refused: {answer.message}")
    actions = tuple(tuple(row) for row in answer.chunk.recordable.tolist())
    return msgspec.structs.replace(spec.example, actions=actions, names=answer.chunk.chosen)


def _example_tolerance(spec: PolicySpec) -> dict[str, Any]:
    """Return how far the example's answer may be from its record, in its own units."""
    space, allowed = spec.action, example_tolerance(spec)
    units = [allowed] * space.width if isinstance(space, DiscreteSpace) else (allowed * space.scale).tolist()
    rounded = isinstance(space, BinnedSpace) and spec.artifact.precision != "float32"
    return {"judged_by": "mean_difference" if rounded else "largest_difference", "units": units}


def _provenance(source: Source) -> dict[str, Any]:
    vectors = {"action": source.action, "state": source.state}
    statistics = {
        name: vector.statistics.sha256() for name, vector in vectors.items() if isinstance(vector, Vector)
    }
    packages = ("torch", "tokenizers", "pillow", "numpy")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return {"statistics_sha256": statistics, "versions": versions, **source.provenance}


def _reopen(path: Path, device: str) -> None:
    """Load the written archive as a worker will; it replays its example."""
    gc.collect()  # the policy that recorded the answer: its buckets and its artifact know each other
    with tempfile.TemporaryDirectory() as temporary:
        Policy.load(unpack(path, Path(temporary)), device)


def _say(line: str) -> None:
    print(line, flush=True)
