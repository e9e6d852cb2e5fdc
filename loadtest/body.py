"""Writes the body of one request, for load generators that send a file as it is.

`python -m loadtest.body model_store/vla.mar body.bin` makes it from the archive's own example request.
TorchServe's own Locust scenario sends it unchanged, and so does ApacheBench; see `loadtest/bodies/README.md`.
"""

import argparse
import io
import json
import zipfile
from pathlib import Path

from PIL import Image

from loadtest import corpus
from loadtest.contract import Contract, read


def body(archive: Path) -> bytes:
    """Return the archived example as a multipart body, to be sent with content type `corpus.FORM`.

    Raises:
        ContractError: the file is no archive of a policy.
    """
    description = read(archive)
    example, fields = description["example"], Contract.of(description).image_fields
    with zipfile.ZipFile(archive) as mar:
        pictures = [_jpeg(mar.read(example["images"][camera["name"]])) for camera in description["cameras"]]
    texts = {"command": example["command"], "seed": str(example["seed"])}
    if example["state"]:
        texts["state"] = json.dumps(example["state"])
    return corpus.form(dict(zip(fields, pictures, strict=True)), texts)


def _jpeg(picture: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(buffer, "JPEG", quality=corpus.JPEG_QUALITY)
    return buffer.getvalue()


def main() -> None:
    """Write the body of the archive that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.body", description="Write one request's body.")
    parser.add_argument("archive", type=Path, help="archive whose example request is written")
    parser.add_argument("output", type=Path, help="file to write")
    options = parser.parse_args()
    options.output.write_bytes(body(options.archive))
    print(f"{options.output}: {options.output.stat().st_size} bytes, content type {corpus.FORM}")


if __name__ == "__main__":
    main()
