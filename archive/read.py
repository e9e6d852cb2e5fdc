"""What an archive says: its name and version, its policy, and its example as a request."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from archive.bounded import Contents
from archive.errors import ArchiveError

MANIFEST = "MAR-INF/MANIFEST.json"
POLICY = "policy.json"
STARTUP_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Example:
    """The archived example request, as the fields of a `POST /predictions/<name>`, and its answer."""

    # Form field -> (file name, encoded image).
    images: dict[str, tuple[str, bytes]]
    # Form field -> text.
    fields: dict[str, str]
    # T actions in physical units; T rows of probabilities, of a discrete policy.
    actions: tuple[tuple[float, ...], ...]

    @property
    def values(self) -> dict[str, Any]:
        """The fields besides the images, as they stand in a JSON request."""
        read = {name: json.loads(text) for name, text in self.fields.items() if name != "command"}
        return {**self.fields, **read}


@dataclass(frozen=True)
class Archive:
    """A `.mar` file: a zip with a manifest."""

    path: Path
    # Name and version under which it is served.
    name: str
    version: str
    # The handler's file: `vla_handler.py` in what export writes.
    handler: str
    # Most requests that its handler takes in one body; 0: it reads no such body.
    largest_batch: int
    # Longest start of a worker [s]; 300 where the archive does not say it.
    startup_timeout_s: float
    # What it takes on a disk once unpacked [bytes].
    unpacked_bytes: int
    # Its policy.json and the example in it; None: an archive of something else than a policy.
    policy: dict[str, Any] | None
    example: Example | None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the manifest and the example request, and check every member's size and CRC-32.

        Raises:
            ArchiveError: missing, damaged, too large for its size, or not an archive; TorchServe would only
                warn, and serve nothing.
        """
        if not path.is_file():
            raise ArchiveError(
                f"no archive at {path}: make one with `make export`, or name another by --archive"
            )
        contents = Contents.of(path)
        contents.verify()
        try:
            model = json.loads(contents.read(MANIFEST))["model"]
            name, version = model["modelName"], model["modelVersion"]
            handler, largest_batch = model.get("handler", ""), int(model.get("largestBatch", 0))
            startup_timeout_s = float(model.get("startupTimeout", STARTUP_TIMEOUT_S))
            policy = json.loads(contents.read(POLICY)) if POLICY in contents.members else None
            example = _example(contents, policy["example"]) if policy else None
        except (KeyError, TypeError, ValueError) as error:
            raise ArchiveError(f"{path} is not a TorchServe archive ({error}); export it again") from error
        return cls(
            path.resolve(),
            name,
            version,
            handler,
            largest_batch,
            startup_timeout_s,
            contents.unpacked_bytes,
            policy,
            example,
        )


def read_policy(path: Path) -> dict[str, Any]:
    """Return an archive's policy.json, without reading the rest.

    Raises:
        ArchiveError: no archive, or not of a policy.
    """
    try:
        return json.loads(Contents.of(path).read(POLICY))
    except (KeyError, ValueError) as error:
        raise ArchiveError(f"{path} is not the archive of a policy ({error})") from error


def unpack(path: Path, folder: Path) -> Path:
    """Unpack an archive into a folder, and return that.

    Raises:
        ArchiveError: no archive, damaged, or too large for its size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    Contents.of(path).unpack(folder)
    return folder


def _example(contents: Contents, example: dict[str, Any]) -> Example:
    one_camera = len(example["images"]) == 1
    images = {}
    for camera, files in example["images"].items():
        name = "image" if one_camera else f"image.{camera}"
        if isinstance(files, str):
            images[name] = (files, contents.read(files))
        else:  # one a step, the oldest first
            images |= {f"{name}.{step}": (file, contents.read(file)) for step, file in enumerate(files)}
    fields = {"seed": str(example["seed"])}
    if example["command"]:
        fields["command"] = example["command"]
    if example["state"]:
        fields["state"] = json.dumps(example["state"])
    return Example(images, fields, tuple(tuple(row) for row in example["actions"]))
