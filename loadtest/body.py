"""Writes requests as bytes: a form of pictures and texts, or one packed map.

`python -m loadtest.body ARCHIVE body.bin` writes the example request of an archive, for load generators that
send a file as it is; see `loadtest/bodies/README.md`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tyro

from archive.read import Archive

Body = Literal["multipart", "msgpack"]
BOUNDARY = "vla-serve-load-test"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
MSGPACK = "application/msgpack"


def written(body: Body, images: Mapping[str, bytes], values: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return a request's body and its content type."""
    return (form(images, values), FORM) if body == "multipart" else (packed(images, values), MSGPACK)


def form(images: Mapping[str, bytes], values: Mapping[str, Any]) -> bytes:
    """Return a multipart body, to be sent with content type `FORM`; what is no text goes as JSON."""
    parts = [_part(f'{name}"; filename="{name}.jpg', b"image/jpeg", data) for name, data in images.items()]
    for name, value in values.items():
        text = value.encode() if isinstance(value, str) else msgspec.json.encode(value)
        parts.append(_part(name, b"text/plain; charset=utf-8", text))
    return b"".join([*parts, b"--%b--\r\n" % BOUNDARY.encode()])


def packed(images: Mapping[str, bytes], values: Mapping[str, Any]) -> bytes:
    """Return the same as msgpack, to be sent with content type `MSGPACK`."""
    return msgspec.msgpack.encode({**images, **values})


def example(archive: Path) -> bytes:
    """Return the archived example as a multipart body.

    Raises:
        ValueError: the archive is not one of a policy.
        ArchiveError: the file is no archive.
    """
    request = Archive.open(archive).example
    if request is None:
        raise ValueError(f"{archive} is not an archive of a policy: it has no example request")
    return form({field: data for field, (_, data) in request.images.items()}, request.fields)


def _part(name: str, content_type: bytes, data: bytes) -> bytes:
    return b'--%b\r\nContent-Disposition: form-data; name="%b"\r\nContent-Type: %b\r\n\r\n%b\r\n' % (
        BOUNDARY.encode(),
        name.encode(),
        content_type,
        data,
    )


def main(
    archive: Annotated[Path, tyro.conf.Positional], output: Annotated[Path, tyro.conf.Positional]
) -> None:
    """Write one request's body.

    Args:
        archive: archive whose example request is written
        output: file to write
    """
    size = output.write_bytes(example(archive))
    print(f"{output}: {size} bytes, content type {FORM}")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m loadtest.body")
