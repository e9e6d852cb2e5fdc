"""What differs from one TorchServe instance to the next, as lines of its `config.properties`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from archive.read import Archive

ROOT = Path(__file__).resolve().parent.parent
# A batch of the gate with its answers, each way [bytes]; the gate bounds what is in one.
LARGEST_CALL = 16 << 20


@dataclass(frozen=True)
class Instance:
    """One TorchServe process; see `server.process.TorchServe` for what each means."""

    archives: Sequence[Archive]
    host: str
    port: int
    inference_port: int
    metrics_port: int
    model_api: bool
    gated: bool
    gpus: int

    def properties(self, folder: Path) -> str:
        """Return the lines; `folder` is the instance's own, where links to its archives may lie."""
        settings = {
            "inference_address": f"http://{self.host}:{self.inference_port}",
            "management_address": f"http://127.0.0.1:{self.port + 1}",
            "metrics_address": f"http://127.0.0.1:{self.metrics_port}",
            "grpc_inference_port": self.port + 3,
            "grpc_management_port": self.port + 4,
            # Sockets lie in the instance's folder; the number matters only where they are TCP ports.
            "initial_worker_port": self.port + 10,
            "metrics_config": ROOT / "metrics.yaml",
            "model_store": self._store(folder),
            "load_models": ",".join(f"{archive.name}={archive.path.name}" for archive in self.archives),
            "enable_model_api": str(self.model_api).lower(),
            # TorchServe counts what `nvidia-smi` lists, and begins with the second where there are two.
            "number_of_gpu": self.gpus,
            **self._of_batches(),
        }
        return "\n# Of this instance\n" + "".join(f"{key}={value}\n" for key, value in settings.items())

    def _of_batches(self) -> dict[str, object]:
        """Return who makes the batches, of archives that leave it open."""
        if self.gated:
            return {"max_request_size": LARGEST_CALL, "max_response_size": LARGEST_CALL}
        # A free worker takes all that is queued, up to the largest bucket; a lone request waits 1 ms.
        models = {
            archive.name: {archive.version: {"batchSize": archive.largest_batch, "maxBatchDelay": 1}}
            for archive in self.archives
            if archive.largest_batch
        }
        return {"models": json.dumps(models)} if models else {}

    def _store(self, folder: Path) -> Path:
        """Return the folder that holds all archives: their own, or one of links where they lie apart."""
        folders = {archive.path.parent for archive in self.archives}
        if len(folders) == 1:
            return folders.pop()
        store = folder / "store"
        store.mkdir()
        for archive in self.archives:
            (store / archive.path.name).symlink_to(archive.path)
        return store
