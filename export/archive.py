"""An artifact's folder to a `.mar`: with the handler, its runtime, settings and TorchServe's manifest."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from archive.read import MANIFEST
from archive.write import pack
from vla_runtime.images import Limits

HANDLERS = Path(__file__).resolve().parent.parent / "handlers"
HANDLER = "vla_handler.py"
CONFIG = "model-config.yaml"


# What is allowed where nothing is known to be slow [s].
RESPONSE_S, STARTUP_S = 5, 300
# How much slower than here a policy may be where it is served, and the slowest disk [bytes/s].
SLOWER, DISK = 4, 50e6
# Batches of each bucket before a worker is ready, its example's among them.
WARM_UP = 4


@dataclass(frozen=True)
class Timeouts:
    """How long a worker may take [s]."""

    # For a batch, until it is given up and its worker replaced.
    response_s: int = RESPONSE_S
    # Until it has loaded the policy and warmed it up.
    startup_s: int = STARTUP_S

    @classmethod
    def of(
        cls, told_s: int | None, buckets: Sequence[int], took_s: Mapping[int, float], size: int
    ) -> "Timeouts":
        """Return what a policy needs; the usual, unless it was slow where it was exported, or is large.

        Args:
            told_s: longest response, where the user says it [s]
            buckets: batch sizes that a worker warms up
            took_s: what batches of some sizes took here [s]
            size: of the artifact [bytes]
        """
        measured = max(took_s)  # smaller than the largest bucket where that is the traced size
        one_s = took_s[measured] / measured
        slowest, warm_up = one_s * max(buckets), WARM_UP * one_s * sum(buckets)
        response = RESPONSE_S if SLOWER * slowest <= RESPONSE_S else math.ceil(SLOWER * slowest)
        # Of a fast policy it must not depend on the clock: equal policies give equal archives.
        more = math.ceil(SLOWER * warm_up) if SLOWER * warm_up > STARTUP_S / 2 else 0
        return cls(told_s or response, STARTUP_S + int(size / DISK) + more)


def model_config(largest_batch: int, workers: int, timeouts: Timeouts, limits: Limits) -> bytes:
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
        "responseTimeout": timeouts.response_s,
        "startupTimeout": timeouts.startup_s,  # [s]
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
    # Longest start of a worker [s].
    startup_timeout_s: int


def write_archive(folder: Path, model: Model, config: bytes, target: Path) -> None:
    """Pack the artifact's folder, the handler and its runtime into `target`, atomically, file by file."""
    said = {"modelName": model.name, "modelVersion": model.version, "handler": HANDLER, "configFile": CONFIG}
    manifest = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        # These two are for whoever starts TorchServe, which does not read them.
        "model": said | {"largestBatch": model.largest_batch, "startupTimeout": model.startup_timeout_s},
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
