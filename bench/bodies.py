"""Requests, made before the clock runs: as rows for a policy, and as the bytes of whole HTTP requests."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtest import corpus
from loadtest.body import MSGPACK, Body, written
from loadtest.corpus import commands
from vla_runtime.observation import Row


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    # Address and path of the endpoint.
    host: str
    port: int
    path: str
    # Fields besides the picture and the command.
    state: tuple[float, ...]

    @property
    def url(self) -> str:
        """The whole address."""
        return f"http://{self.host}:{self.port}{self.path}"


class Request(msgspec.Struct, frozen=True, array_like=True):
    """One request, in two parts: between them goes the time at which it is sent [s since the epoch]."""

    head: bytes
    rest: bytes


def pictures(count: int, size: tuple[int, int] = (640, 480), kilobytes: float | None = 60.0) -> list[bytes]:
    """Return different JPEG files of one size [pixels], of about so many KB; None: of quality 90."""
    return corpus.pictures(count, (size,), 0, kilobytes)


def rows(images: Sequence[bytes], state: tuple[float, ...] = ()) -> list[Row]:
    """Return requests as `Policy.infer` takes them: each its own picture and seed, few commands."""
    given: Row = {"state": state} if state else {}
    return [
        {"image": image, "command": command, "seed": index, **given}
        for index, (image, command) in enumerate(zip(images, repeated(len(images)), strict=True))
    ]


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
