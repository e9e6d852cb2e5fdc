"""A multipart/form-data body, read strictly and within bounds, and the same fields as MessagePack."""

import re
import struct
from collections.abc import Mapping

from server.gate.refusal import Refusal, malformed

MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"
JSON = "application/json"
MSGPACK = "application/msgpack"
# A policy with 8 cameras and a history of 4 has 40 fields.
MOST_FIELDS = 64
# Longest headers of one field [bytes].
LONGEST_HEAD = 1024
LONGEST_NAME = 128
PARAMETER = re.compile(r';\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s";]*)\s*')
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii"}
# Bytes as they are; `base64` and `quoted-printable` are not taken.
PLAIN = {"7bit", "8bit", "binary"}

Fields = Mapping[str, bytes]


def media_type(content_type: str) -> tuple[str, dict[str, str]]:
    """Return a Content-Type's media type and its parameters, both by lower-case name.

    Raises:
        Refusal: 400: it can't be read, or names a character set that is not UTF-8.
    """
    kind, _, _ = content_type.partition(";")
    parameters = _parameters(content_type[len(kind) :], "Content-Type")
    if parameters.get("charset", "utf-8").lower() not in CHARSETS:
        raise malformed("text is read as UTF-8; the Content-Type names another charset")
    return kind.strip().lower(), parameters


def fields(body: bytes, boundary: str) -> dict[str, bytes]:
    """Take a body apart.

    Args:
        body: the whole body
        boundary: of the request's Content-Type

    Returns:
        name -> content

    Raises:
        Refusal: 400: it is malformed, has too many fields, or has a field twice.
    """
    if not BOUNDARY.fullmatch(boundary):
        raise malformed("multipart/form-data needs a boundary of 1 to 70 characters in its Content-Type")
    delimiter = b"\r\n--" + boundary.encode()
    if not body.startswith(delimiter[2:]):
        raise malformed("the multipart body has no readable part")
    found: dict[str, bytes] = {}
    at = len(delimiter) - 2
    while body[at : at + 2] == b"\r\n":
        if len(found) == MOST_FIELDS:
            raise malformed(f"more than {MOST_FIELDS} fields")
        begin = body.find(b"\r\n\r\n", at, at + LONGEST_HEAD)
        if begin < 0:
            raise malformed(f"a part's headers do not end within {LONGEST_HEAD} bytes")
        name = _name(body[at + 2 : begin])
        if name in found:
            raise malformed("is there twice", name)
        end = body.find(delimiter, begin + 4)
        if end < 0:
            raise malformed("the multipart body is cut short", name)
        found[name] = body[begin + 4 : end]
        at = end + len(delimiter)
    if body[at : at + 2] != b"--" or body[at + 2 :].strip(b" \t\r\n"):
        raise malformed("the multipart body does not end with its boundary")
    if not found:
        raise malformed("the multipart body has no readable part")
    return found


def to_msgpack(found: Fields) -> bytes:
    """Return the fields as a MessagePack map of strings to bytes: what a worker reads as the same request."""
    count = len(found)
    parts = [bytes([0x80 | count]) if count < 16 else b"\xde" + count.to_bytes(2, "big")]
    for name, content in found.items():
        key = name.encode()
        parts += [
            b"\xda",
            len(key).to_bytes(2, "big"),
            key,
            b"\xc6",
            len(content).to_bytes(4, "big"),
            content,
        ]
    return b"".join(parts)


def count_urlencoded(body: bytes) -> None:
    """Raise a Refusal, 400, when a form has too many fields."""
    if body.count(b"&") >= MOST_FIELDS or body.count(b";") >= MOST_FIELDS:
        raise malformed(f"more than {MOST_FIELDS} fields")


def deadline_ms(kind: str, body: bytes, found: Fields | None) -> float | None:
    """Return the request's `deadline_ms`, as far as it is a number; whether it is valid the worker says."""
    if found is not None:
        text = found.get("deadline_ms")
        return None if text is None else _number(text)
    if kind == JSON:
        match = re.search(rb'"deadline_ms"\s{0,8}:\s{0,8}"?([0-9.eE+-]{1,32})', body)
        return None if match is None else _number(match[1])
    if kind == MSGPACK and (at := body.find(b"\xabdeadline_ms")) >= 0:
        return _packed_number(body[at + 12 : at + 48])
    return None


def _number(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < 1e9 else None


def _packed_number(data: bytes) -> float | None:
    """Read a MessagePack number, or a number in a short text."""
    if not data:
        return None
    kind, rest = data[0], data[1:]
    if kind < 0x80:
        return float(kind) or None
    widths = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
    if kind in widths:
        size = struct.calcsize(widths[kind])
        if len(rest) < size:
            return None
        return _number(repr(struct.unpack(widths[kind], rest[:size])[0]).encode())
    return _number(rest[: kind & 0x1F]) if 0xA0 <= kind < 0xC0 else None


def _name(head: bytes) -> str:
    """Return the field's name out of a part's headers.

    Raises:
        Refusal: 400: there is none, or the part is encoded.
    """
    try:
        lines = [line.partition(":") for line in head.decode().split("\r\n")]
    except UnicodeDecodeError:
        raise malformed("a part's headers are not UTF-8") from None
    headers = {name.strip().lower(): value.strip() for name, _, value in lines}
    if len(headers) < len(lines):
        raise malformed("a part has a header twice")
    disposition = headers.get("content-disposition", "")
    kind, _, _ = disposition.partition(";")
    name = _parameters(disposition[len(kind) :], "Content-Disposition").get("name")
    if kind.strip().lower() != "form-data" or not name or len(name) > LONGEST_NAME:
        raise malformed('each part needs `Content-Disposition: form-data; name="..."`')
    if headers.get("content-transfer-encoding", "binary").lower() not in PLAIN:
        raise malformed("send the bytes as they are: no Content-Transfer-Encoding", name)
    if media_type(headers.get("content-type", ""))[0].startswith("multipart/"):
        raise malformed("a part may not be multipart itself", name)
    return name


def _parameters(text: str, header: str) -> dict[str, str]:
    """Read `; name=value; other="value"`."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = PARAMETER.match(text, at)
        if match is None:
            if text[at:].strip() in ("", ";"):
                break
            raise malformed(f"the header {header} can't be read")
        name, value = match[1].lower(), match[2]
        if name in found:
            raise malformed(f"the header {header} says {name} twice")
        found[name] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        at = match.end()
    return found


def unsupported(kind: str) -> Refusal:
    """Return the refusal of a content type that no policy reads."""
    got = kind[:64] or "none"
    return Refusal(415, "unsupported_media_type", f"send {MULTIPART}, {JSON} or {MSGPACK}; got {got}")
