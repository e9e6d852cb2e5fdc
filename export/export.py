"""Checkpoint to archive, as one list of steps."""

import hashlib
import platform
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import tyro

from export import archive
from export.trace import trace
from export.verify import verify
from vla.training import checkpoint
from vla_runtime.artifact import Artifact as RunningArtifact
from vla_runtime.errors import RequestError, SpecError
from vla_runtime.policy import Policy
from vla_runtime.preprocessing import CommandTokenizer
from vla_runtime.spec import Artifact, Example, PolicySpec

ARTIFACT_FILE = "policy.ts"


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
    # Worker processes. One is best on a CPU.
    workers: int = 1
    # Largest allowed difference between model and artifact, in normalised units.
    tolerance: float = 1e-4


def export(options: Options) -> PolicySpec:
    """Trace, verify, describe and archive one checkpoint.

    Returns:
        the spec that the archive carries

    Raises:
        SpecError: the checkpoint lacks something or contradicts itself.
        ExportError: the traced artifact does not do what the model does.
    """
    config, model = checkpoint.load(options.checkpoint)
    sizes, largest = config.sizes(), max(options.buckets)
    stochastic = bool(getattr(model, "stochastic", False))
    print(f"tracing {config.architecture} of {options.checkpoint}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = folder / ARTIFACT_FILE
        outputs = trace(model, sizes, path, stochastic=stochastic)
        parity = verify(model, path, sizes, largest, options.tolerance, stochastic=stochastic)
        difference = parity["largest_difference"]
        print(
            f"verified at batch sizes {parity['batch_sizes']}: largest difference {difference:.1e}",
            flush=True,
        )
        artifact = Artifact(
            file=path.name, buckets=tuple(sorted(options.buckets)), outputs=outputs, stochastic=stochastic
        )
        spec = _describe(options, config, folder, artifact, parity)
        archive.write(
            folder,
            options.output.stem,
            options.version,
            archive.model_config(largest, options.workers),
            options.output,
        )
    _reopen(options.output)
    size, digest = options.output.stat().st_size, hashlib.sha256(options.output.read_bytes()).hexdigest()
    print(f"{options.output}: {size / 1e6:.1f} MB, SHA-256 {digest}", flush=True)
    return spec


def _describe(
    options: Options, config: checkpoint.Config, folder: Path, artifact: Artifact, parity: dict[str, Any]
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
        provenance=_provenance(options, config, parity),
    )
    spec = msgspec.structs.replace(spec, example=_answered(spec, folder))
    spec.save(folder)
    return spec


def _answered(spec: PolicySpec, folder: Path) -> Example:
    """Record the policy's answer to the example request."""
    tokenizer = CommandTokenizer(folder, spec.tokenizer)
    policy = Policy(spec, tokenizer, RunningArtifact(folder, spec), threads=1)
    answer = policy.infer([policy.example_row(folder)])[0]
    if isinstance(answer, RequestError):
        raise SpecError(f"the checkpoint's example is refused: {answer.message}")
    actions = tuple(tuple(action) for action in answer.chunk.actions.tolist())
    return msgspec.structs.replace(spec.example, actions=actions)


def _provenance(options: Options, config: checkpoint.Config, parity: dict[str, Any]) -> dict[str, Any]:
    trained = options.checkpoint / checkpoint.PROVENANCE
    digests = {
        name: hashlib.sha256((options.checkpoint / name).read_bytes()).hexdigest()
        for name in (checkpoint.CONFIG, checkpoint.WEIGHTS)
    }
    statistics = {"action": config.action.statistics.sha256()}
    if config.state:
        statistics["state"] = config.state.statistics.sha256()
    packages = ("torch", "tokenizers", "pillow", "numpy")
    return {
        "checkpoint_sha256": digests,
        "statistics_sha256": statistics,
        "parity": parity,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "training": msgspec.json.decode(trained.read_bytes()) if trained.is_file() else None,
    }


def _reopen(path: Path) -> None:
    """Load the written archive as a worker will; it replays its example."""
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(path) as archived:
        archived.extractall(temporary)
        Policy.load(Path(temporary))
