"""Whole HTTP requests as bytes, made before the clock runs."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

Body = Literal["multipart", "msgpack"]

BOUNDARY = "vla-bench-7f3c1e"
# A robot repeats its command for hundreds of frames.
COMMANDS = tuple(
    f"{verb} the {colour} block"
    for verb in ("lift", "push", "reach", "go to")
    for colour in ("red", "green", "blue", "yellow")
)


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    # Address and path of the endpoint.
    host: str
    port: int
    path: str
    # Fields besides the picture and the command.
    state: tuple[float, ...]


class Request(msgspec.Struct, frozen=True, array_like=True):
    """One request, in two parts: between them goes the time at which it is sent [s since the epoch]."""

    head: bytes
    rest: bytes


def requests(target: Target, images: Sequence[bytes], commands: Iterable[str], body: Body) -> list[Request]:
    """Make one request a command; pictures are repeated in order where there are fewer."""
    return [
        _request(target, images[index % len(images)], command, body) for index, command in enumerate(commands)
    ]


def repeated(count: int) -> list[str]:
    """Return `count` commands out of the few that robots of one task are given."""
    return [COMMANDS[index % len(COMMANDS)] for index in range(count)]


def all_different(count: int, turn: int) -> list[str]:
    """Return `count` commands unlike each other and those of other turns, so that no cache has them."""
    return [f"{COMMANDS[index % len(COMMANDS)]} number {turn} {index}" for index in range(count)]


def write(pool: Sequence[Request], path: Path) -> Path:
    """Write requests to a file for the load generator."""
    path.write_bytes(msgspec.msgpack.encode(pool))
    return path


def _request(target: Target, image: bytes, command: str, body: Body) -> Request:
    if body == "msgpack":
        fields: dict[str, object] = {"image": image, "command": command}
        content = msgspec.msgpack.encode(fields | ({"state": target.state} if target.state else {}))
        kind = accept = "application/msgpack"
    else:
        content = _multipart(image, command, target.state)
        kind, accept = f"multipart/form-data; boundary={BOUNDARY}", "application/json"
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nAccept: {accept}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(content)}\r\nX-Request-Start: t="
    )
    return Request(head.encode(), b"\r\n\r\n" + content)


def _multipart(image: bytes, command: str, state: Sequence[float]) -> bytes:
    fields = {"command": command, **({"state": json.dumps(state)} if state else {})}
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    disposition = 'Content-Disposition: form-data; name="image"; filename="image"'
    parts.append(f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode() + image)
    return b"".join(parts) + f"\r\n--{BOUNDARY}--\r\n".encode()
