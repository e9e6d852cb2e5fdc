"""An artifact's folder to a `.mar`: with the handler, its runtime, settings and TorchServe's manifest."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from archive.read import MANIFEST
from archive.write import pack
from vla_runtime.images import Limits

HANDLERS = Path(__file__).resolve().parent.parent / "handlers"
HANDLER = "vla_handler.py"
CONFIG = "model-config.yaml"


def model_config(largest_batch: int, workers: int, response_timeout_s: int, limits: Limits) -> bytes:
    """Return the archive's `model-config.yaml`: workers, queue and timeouts.

    It says nothing of batches, which would bind every server: the gate makes them, and where there is none,
    `server.process` has TorchServe make them.
    """
    config = {
        "minWorkers": workers,
        "maxWorkers": workers,
        # Beyond it a request is refused with 503 at once instead of growing old in the queue.
        "jobQueueSize": 4 * largest_batch,
        # A batch that takes longer is given up with its worker, which a fresh one replaces [s].
        "responseTimeout": response_timeout_s,
        "startupTimeout": 300,  # [s]
        # A worker that keeps dying is given up after this time [s], and /ping says so.
        "maxRetryTimeoutInSec": 60,
        # For the handler: workers of one host share its cores, and a picture may cost so much.
        "handler": {"workers": workers, **asdict(limits)},
    }
    return yaml.safe_dump(config, sort_keys=False).encode()


@dataclass(frozen=True)
class Model:
    """What the manifest says."""

    name: str
    version: str
    # Most requests that the handler takes in one body.
    largest_batch: int


def write_archive(folder: Path, model: Model, config: bytes, target: Path) -> None:
    """Pack the artifact's folder, the handler and its runtime into `target`, atomically, file by file."""
    said = {"modelName": model.name, "modelVersion": model.version, "handler": HANDLER, "configFile": CONFIG}
    manifest = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        # The last is for the gate; TorchServe does not read it.
        "model": said | {"largestBatch": model.largest_batch},
        "archiverVersion": "0.12.0",
    }
    contents: dict[str, bytes | Path] = {
        MANIFEST: json.dumps(manifest, indent=2).encode(),
        CONFIG: config,
        HANDLER: HANDLERS / HANDLER,
    }
    contents |= _files(folder, folder) | _files(HANDLERS / "vla_runtime", HANDLERS)
    pack(contents, target)


def _files(folder: Path, root: Path) -> dict[str, bytes | Path]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix(): path for path in found}
