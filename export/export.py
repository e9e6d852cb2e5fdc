"""Checkpoint to archive, as one list of steps."""

import hashlib
import platform
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import tyro

from export import archive
from export.batch import Batch
from export.errors import ExportError
from export.lower import Lowered
from export.package import package
from export.quantise import quantised
from export.saturate import saturated
from export.target import Target
from export.trace import trace
from export.verify import SEEDS, TOLERANCES, Parity, verify
from vla.training import checkpoint
from vla_runtime.artifact import Artifact as RunningArtifact
from vla_runtime.errors import RequestError, SpecError
from vla_runtime.module import load_module, platform_of
from vla_runtime.policy import Policy
from vla_runtime.preprocessing import CommandTokenizer
from vla_runtime.spec import Artifact, Example, Format, PolicySpec, Precision, Vector

FILES: dict[Format, str] = {"torchscript": "policy.ts", "pt2": "policy.pt2"}


@dataclass(frozen=True)
class Options:
    """What to export, and how it is to be served."""

    # Folder of the checkpoint.
    checkpoint: tyro.conf.Positional[Path]
    # The archive to write; its name without `.mar` is the model's name in the URL.
    output: Path = Path("model_store/vla.mar")
    # Version of the archive: the last part of /predictions/vla/<version>.
    version: str = "1.0"
    # Batch sizes [requests] that batches are padded to; the largest is the server's batchSize.
    buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    # Worker processes. A second one serves small policies to more robots, for twice the memory.
    workers: int = 1
    # torchscript runs anywhere; pt2 (AOTInductor) is machine code for this machine, and needs g++ here.
    format: Format = "torchscript"
    # Of the matrix products and their weights; bfloat16 halves the weights and rounds to 0.4 %. int8 is for
    # torchscript on a CPU: a quarter of the weights' size.
    precision: Precision = "float32"
    # Where a pt2 runs: it is compiled for the device of this machine.
    device: Literal["cpu", "cuda"] = "cpu"
    # Allowed difference of model and artifact, in normalised units: the largest in float32 (default 1e-4),
    # the root mean square in bfloat16 and int8 (default 0.05).
    tolerance: float | None = None


def export(options: Options) -> PolicySpec:
    """Trace, verify, describe and archive one checkpoint.

    Returns:
        the spec that the archive carries

    Raises:
        SpecError: the checkpoint lacks something or contradicts itself.
        ExportError: the traced artifact does not do what the model does.
    """
    config, model = checkpoint.load(options.checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        artifact, found = _compile(options, config, model, folder)
        spec = _describe(options, config, folder, artifact, found)
        archive.write(
            folder,
            options.output.stem,
            options.version,
            archive.model_config(max(options.buckets), options.workers),
            options.output,
        )
    _reopen(options.output, options.device)
    size, digest = options.output.stat().st_size, hashlib.sha256(options.output.read_bytes()).hexdigest()
    print(f"{options.output}: {size / 1e6:.1f} MB, SHA-256 {digest}", flush=True)
    return spec


def _compile(
    options: Options, config: checkpoint.Config, model: Any, folder: Path
) -> tuple[Artifact, dict[str, Any]]:
    """Make the artifact in a folder, and compare it with the model.

    Returns:
        the artifact's description, and what the comparison found, for the archive's provenance
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ExportError("device is 'cuda', but this machine has no GPU that torch can use")
    target = Target(
        largest_batch=max(options.buckets),
        format=options.format,
        precision=options.precision,
        device=options.device,
        stochastic=bool(getattr(model, "stochastic", False)),
        output=config.action.output,
    )
    sizes, file = config.sizes(), FILES[target.format]
    extras = dict(getattr(model, "extras", {}))
    model = saturated(model, config.action).to(target.device)
    lowered = _lowered(model, target)
    print(f"{target.format} in {target.precision}: {config.architecture} of {options.checkpoint}", flush=True)
    make = trace if target.format == "torchscript" else package
    artifact = Artifact(
        file=file,
        buckets=tuple(sorted(options.buckets)),
        outputs=make(lowered, sizes, folder / file, target),
        extras=extras,
        stochastic=target.stochastic,
        format=target.format,
        precision=target.precision,
        platform=platform_of(target.device) if target.format == "pt2" else None,
    )
    tolerance = TOLERANCES[target.precision] if options.tolerance is None else options.tolerance
    module = load_module(folder, artifact, target.device)
    example = Batch.example(options.checkpoint, config, target)
    parity = verify(model, module, sizes, target, tolerance=tolerance, examples=[example])
    return artifact, _found(parity, tolerance, target, config)


def _lowered(model: Any, target: Target) -> Any:
    """Return the model that is compiled: itself, or a copy of lower precision."""
    if target.precision == "int8":
        return quantised(model, target)
    return Lowered(model, target.device) if target.precision == "bfloat16" else model


def _found(parity: Parity, tolerance: float, target: Target, config: checkpoint.Config) -> dict[str, Any]:
    """Print what the comparison found, and return it for the provenance."""
    summary = parity.summary()
    print(
        f"verified at batch sizes {list(parity.batch_sizes)}: largest difference "
        f"{summary['largest_difference']:.1e}, root mean square {summary['root_mean_square']:.1e}",
        flush=True,
    )
    judged = "largest_difference" if target.precision == "float32" else "root_mean_square"
    about = {"batch_sizes": parity.batch_sizes, "seeds": SEEDS, "tolerance": tolerance, "judged_by": judged}
    return {"parity": about | summary, "precision_loss": parity.loss(config.action)}


def _describe(
    options: Options, config: checkpoint.Config, folder: Path, artifact: Artifact, found: dict[str, Any]
) -> PolicySpec:
    """Write `policy.json` and what it refers to into the artifact's folder, with the example's answer."""
    shutil.copy(checkpoint.TOKENIZER_FOLDER / config.tokenizer.file, folder)
    source = msgspec.json.decode(
        (options.checkpoint / checkpoint.EXAMPLE).read_bytes(), type=checkpoint.Example
    )
    for file in source.images.values():
        shutil.copy(options.checkpoint / file, folder)
    spec = PolicySpec(
        name=config.name,
        version=options.version,
        architecture=config.architecture,
        cameras=config.cameras,
        tokenizer=config.tokenizer,
        state=config.state,
        action=config.action,
        safety=config.safety,
        artifact=artifact,
        example=Example(images=source.images, command=source.command, state=source.state, seed=0, actions=()),
        provenance=_provenance(options, config) | found,
    )
    spec = msgspec.structs.replace(spec, example=_answered(spec, folder, options.device))
    spec.save(folder)
    return spec


def _answered(spec: PolicySpec, folder: Path, device: str) -> Example:
    """Record the policy's answer to the example request."""
    tokenizer = CommandTokenizer(folder, spec.tokenizer)
    policy = Policy(spec, tokenizer, RunningArtifact(folder, spec, device), threads=1)
    answer = policy.infer([policy.example_row(folder)])[0]
    if isinstance(answer, RequestError):
        raise SpecError(f"the checkpoint's example is refused: {answer.message}")
    actions = tuple(tuple(row) for row in answer.chunk.recordable.tolist())
    return msgspec.structs.replace(spec.example, actions=actions, names=answer.chunk.chosen)


def _provenance(options: Options, config: checkpoint.Config) -> dict[str, Any]:
    trained = options.checkpoint / checkpoint.PROVENANCE
    digests = {
        name: hashlib.sha256((options.checkpoint / name).read_bytes()).hexdigest()
        for name in (checkpoint.CONFIG, checkpoint.WEIGHTS)
    }
    vectors = {"action": config.action, "state": config.state}
    statistics = {
        name: vector.statistics.sha256() for name, vector in vectors.items() if isinstance(vector, Vector)
    }
    packages = ("torch", "tokenizers", "pillow", "numpy")
    return {
        "checkpoint_sha256": digests,
        "statistics_sha256": statistics,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "training": msgspec.json.decode(trained.read_bytes()) if trained.is_file() else None,
    }


def _reopen(path: Path, device: str) -> None:
    """Load the written archive as a worker will; it replays its example."""
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(path) as archived:
        archived.extractall(temporary)
        Policy.load(Path(temporary), device)
