"""The archives of the fault table: a policy that fails when told to, and files that are no such archive."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from archive.digest import digest
from archive.read import MANIFEST, POLICY
from archive.write import pack
from bench.faults import fragile
from export.export import Options, archived
from export.source import Eager, Observation, Source
from vla_runtime.spec import Camera, ContinuousSpace, Dimension, Statistics

PIXELS = 32
BUCKETS = (1, 2, 4, 8)


def write_fragile(path: Path, switch: Path, version: str = "1.0", gain: float = 0.5) -> Path:
    """Export the policy that reads its faults from the file `switch`."""
    arguments = {"switch": str(switch), "gain": gain}
    source = Source(
        model=fragile.build(**arguments).eval(),
        name="fragile",
        cameras=(Camera(name="front", width=PIXELS, height=PIXELS, values="zero_to_one"),),
        action=ContinuousSpace(
            dimensions=tuple(Dimension(name=name, unit="1", low=-1.0, high=1.0) for name in ("up", "down")),
            normalisation="identity",
            statistics=Statistics(),
            horizon=1,
            control_hz=10.0,
        ),
        example=Observation({"front": grey(100)}),
        eager=Eager(Path(fragile.__file__).parent, "fragile:build", arguments),
    )
    archived(source, Options("fragile", path, version, buckets=BUCKETS, format="eager"))
    return with_digest(path)


def grey(value: int) -> np.ndarray:
    """Return a picture of one brightness."""
    return np.full((PIXELS, PIXELS, 3), value, np.uint8)


def png(pixels: np.ndarray, file: Path) -> bytes:
    """Return a picture as a PNG file's bytes."""
    Image.fromarray(pixels).save(file, "PNG")
    return file.read_bytes()


def with_digest(path: Path) -> Path:
    """Write the digest beside an archive, as a replica wants it."""
    path.with_name(f"{path.name}.sha256").write_text(f"{digest(path)}  {path.name}\n")
    return path


def corrupt(archive: Path, target: Path) -> Path:
    """Copy an archive with 64 bytes in its middle turned over."""
    data = bytearray(archive.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
    target.write_bytes(data)
    return with_digest(target)


def truncated(archive: Path, target: Path) -> Path:
    """Copy the first half of an archive."""
    target.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    return with_digest(target)


def other_schema(archive: Path, target: Path) -> Path:
    """Copy an archive whose policy.json is of a format that is not known here."""
    with zipfile.ZipFile(archive) as mar:
        contents = {name: mar.read(name) for name in mar.namelist()}
    policy, manifest = json.loads(contents[POLICY]), json.loads(contents[MANIFEST])
    manifest["model"]["modelVersion"] = "99.0"
    contents[POLICY] = json.dumps(policy | {"format_version": 99}).encode()
    contents[MANIFEST] = json.dumps(manifest).encode()
    pack(contents, target)
    return with_digest(target)


# What else may lie where an archive should.
DAMAGES: dict[str, Callable[[Path, Path], Path]] = {
    "corrupt": corrupt,
    "truncated": truncated,
    "of another schema": other_schema,
}
