"""What the server must know of an archive before TorchServe opens it."""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from server.errors import ArchiveError

MANIFEST = "MAR-INF/MANIFEST.json"
POLICY = "policy.json"


@dataclass(frozen=True)
class Example:
    """The archived example request, as the fields of a `POST /predictions/<name>`."""

    # Form field -> (file name, encoded image).
    images: dict[str, tuple[str, bytes]]
    # Form field -> text.
    fields: dict[str, str]


@dataclass(frozen=True)
class Archive:
    """A `.mar` file: a zip with a manifest."""

    path: Path
    # Name and version under which it is served.
    name: str
    version: str
    # None: an archive of something else than a policy.
    example: Example | None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the manifest and the example request, and check every member's CRC-32.

        Raises:
            ArchiveError: missing, damaged, or not an archive; TorchServe would only warn, and serve nothing.
        """
        if not path.is_file():
            raise ArchiveError(
                f"no archive at {path}: make one with `make export`, or name another by --archive"
            )
        try:
            with zipfile.ZipFile(path) as mar:
                if damaged := mar.testzip():
                    raise ArchiveError(
                        f"{path} is damaged: {damaged} has the wrong checksum; export it again"
                    )
                model = json.loads(mar.read(MANIFEST))["model"]
                example = _example(mar) if POLICY in mar.namelist() else None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, KeyError, ValueError) as error:
            raise ArchiveError(f"{path} is not a TorchServe archive ({error}); export it again") from error
        return cls(path.resolve(), model["modelName"], model["modelVersion"], example)


def _example(mar: zipfile.ZipFile) -> Example:
    example: dict[str, Any] = json.loads(mar.read(POLICY))["example"]
    one_camera = len(example["images"]) == 1
    images = {}
    for camera, files in example["images"].items():
        name = "image" if one_camera else f"image.{camera}"
        if isinstance(files, str):
            images[name] = (files, mar.read(files))
        else:  # one a step, the oldest first
            images |= {f"{name}.{step}": (file, mar.read(file)) for step, file in enumerate(files)}
    fields = {"seed": str(example["seed"])}
    if example["command"]:
        fields["command"] = example["command"]
    if example["state"]:
        fields["state"] = json.dumps(example["state"])
    return Example(images, fields)
