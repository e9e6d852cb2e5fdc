"""Whole HTTP requests as bytes, made before the clock runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtest.body import MSGPACK, Body, written
from loadtest.corpus import commands


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


def requests(target: Target, images: Sequence[bytes], said: Iterable[str], body: Body) -> list[Request]:
    """Make one request a command; pictures are repeated in order where there are fewer."""
    return [_request(target, images[i % len(images)], command, body) for i, command in enumerate(said)]


def repeated(count: int) -> list[str]:
    """Return `count` commands out of the few that a robot repeats for hundreds of frames."""
    return [commands()[index % len(commands())] for index in range(count)]


def all_different(count: int, turn: int) -> list[str]:
    """Return `count` commands unlike each other and those of other turns, so that no cache has them."""
    return [f"{command} number {turn} {index}" for index, command in enumerate(repeated(count))]


def write(pool: Sequence[Request], path: Path) -> Path:
    """Write requests to a file for the load generator."""
    path.write_bytes(msgspec.msgpack.encode(pool))
    return path


def _request(target: Target, image: bytes, command: str, body: Body) -> Request:
    fields = {"command": command, "state": target.state}
    values = {name: value for name, value in fields.items() if value}
    content, kind = written(body, {"image": image}, values)
    accept = MSGPACK if body == "msgpack" else "application/json"
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nAccept: {accept}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(content)}\r\nX-Request-Start: t="
    )
    return Request(head.encode(), b"\r\n\r\n" + content)
