"""What attackers send, attack by attack."""

import base64
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from loadtest.body import MSGPACK

JSON = "application/json"
FORM = "multipart/form-data; boundary=b"
PATH = "/predictions/vla"
EMPTY_PART = b'--b\r\nContent-Disposition: form-data; name=""\r\n\r\n\r\n'
LARGEST = 4 << 20


@dataclass(frozen=True)
class Attack:
    """One attack, with how many connections."""

    name: str
    requests: list[bytes]
    connections: int = 16
    # Bodies come byte by byte.
    slow: bool = False
    # With the robots' own key.
    shared: bool = False
    # Waits as long as a refusal says.
    heeds: bool = False


def attacks(row: Mapping[str, Any], key: str, shared_key: str) -> Iterator[Attack]:
    """Yield every attack.

    Args:
        row: a good request
        key: the attackers' API key
        shared_key: the robots'
    """

    def packed(**changed: object) -> bytes:
        return request(msgspec.msgpack.encode({**row, **changed}), MSGPACK, key)

    yield Attack(
        "field names with lone surrogates", [request(b'{"\\udfff":1}', JSON, key), _spoken(row, key)]
    )
    flood = EMPTY_PART * ((LARGEST - 100) // len(EMPTY_PART)) + b"--b--\r\n"
    yield Attack("74,000 empty parts in 4 MB", [request(flood, FORM, key)])
    yield Attack("JPEG with 400 scans", [packed(image=_scans(400))])
    yield Attack("JPEG with as many scans as are taken", [packed(image=_scans(10))])
    yield Attack("16 MP in a WebP of 1 kB or a PNG", [packed(image=data) for data in _large(4000, 4000)])
    yield Attack("the dearest pictures that are taken", [packed(image=data) for data in _dear()])
    wrong = [request(b"{}", JSON, name) for name in ("no-such-key", "~.*", shared_key.upper())]
    yield Attack("wrong keys", wrong)
    yield Attack("broken framing, smuggling, TLS", list(_broken(key)))
    bad = [_twice(row, key), packed(command="\0\0"), packed(command="\u200b"), packed(image=_damaged(row))]
    yield Attack("duplicate fields, empty commands, damaged JPEGs", bad)
    yield Attack("128 slow bodies with the robots' key", [_slow(shared_key)], 128, slow=True, shared=True)


def overload(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[Attack, Attack]:
    """Return good requests, many more than the server has capacity for, of clients without heed and with."""
    good = [request(msgspec.msgpack.encode(row), MSGPACK, key) for row in rows]
    return Attack("without heed of Retry-After", good, 256), Attack(
        "as Retry-After says", good, 192, heeds=True
    )


def request(body: bytes, content_type: str, key: str, *lines: str) -> bytes:
    """Return a whole request."""
    head = [f"POST {PATH} HTTP/1.1", "Host: x", f"X-API-Key: {key}", f"Content-Type: {content_type}", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def _spoken(row: Mapping[str, Any], key: str) -> bytes:
    """Return a good request but for a surrogate in its command."""
    said = dict(row) | {"image": base64.b64encode(row["image"]).decode(), "command": "\udfff"}
    return request(json.dumps(said).encode(), JSON, key)


def _twice(row: Mapping[str, Any], key: str) -> bytes:
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % pair
        for pair in ((b"image", row["image"]), (b"command", b"go"), (b"command", b"stop"))
    ]
    return request(b"".join([*parts, b"--b--\r\n"]), FORM, key)


def _scans(more: int) -> bytes:
    """Return a progressive JPEG whose first scan is there again and again."""
    data = _encoded(Image.effect_noise((1600, 1200), 60).convert("RGB"), "JPEG", progressive=True)
    begin = data.index(b"\xff\xda")
    end = begin + 2
    while not (data[end] == 0xFF and data[end + 1] not in (0x00, 0xFF)):
        end += 1
    return (data[:end] + data[begin:end] * more + data[end:])[: LARGEST - 1000]


def _large(width: int, height: int) -> list[bytes]:
    flat = Image.new("RGBA", (width, height), (9, 99, 199, 99))
    return [_encoded(flat.convert("RGB"), "WEBP"), _encoded(flat, "PNG", compress_level=1)]


def _dear() -> list[bytes]:
    """Return pictures of less than 4 MP that cost as much as is taken: flat, and so a few kB each."""
    webp = _encoded(Image.new("RGB", (2400, 1600), (9, 99, 199)), "WEBP")
    png = _encoded(Image.new("RGB", (2400, 1600), (9, 99, 199)), "PNG")
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    return [webp, png, _encoded(Image.fromarray(noise), "PNG", compress_level=1)]


def _damaged(row: Mapping[str, Any]) -> bytes:
    data = bytearray(_encoded(Image.open(io.BytesIO(row["image"])).convert("RGB"), "JPEG"))
    middle = 3 * len(data) // 4
    data[middle : middle + 16] = b"\x55" * 16
    return bytes(data)


def _broken(key: str) -> Iterator[bytes]:
    post = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n".encode()
    hidden = b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(200)
    yield b"POST /predictions/vla HTTP/9.9\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    yield post + b"Content-Length: -1\r\n\r\n"
    yield post + b"Transfer-Encoding: banana\r\n\r\n"
    yield post + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + hidden
    yield post + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(hidden) + hidden
    yield post + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden
    yield request(b"--b--\r\n", "multipart/form-data; boundary=", key)
    yield request(b"--b\r\n\r\nx\r\n--b--\r\n", FORM, key)
    yield from (request(b"{}", f"application/json; charset={name}", key) for name in ("bogus", "utf-16"))


def _slow(key: str) -> bytes:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Type: {MSGPACK}\r\n"
    return f"{head}Content-Length: 100000\r\n\r\n".encode()


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def good_rows(images: Mapping[str, bytes], fields: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return requests like the archived example, each with its picture turned or another kind of file."""
    ((field, data),) = images.items()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    kinds = itertools.cycle(("JPEG", "PNG"))
    return [
        {**fields, field: _encoded(picture.rotate(90 * (index % 4)), next(kinds))} for index in range(count)
    ]
