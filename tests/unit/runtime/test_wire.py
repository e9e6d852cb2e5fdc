"""Bodies to rows and answers to bytes: refused before any field is read, and no text that can't leave."""

import json

import msgspec
import pytest

from vla_runtime import wire
from vla_runtime.errors import MalformedBody, RequestError, UnknownField

TWICE = b"\x82\xa4seed\x01\xa4seed\x02"


def refused(body: bytes, content_type: str = wire.JSON) -> RequestError:
    error = wire.read({"body": body}, content_type)
    assert isinstance(error, RequestError), error
    return error


@pytest.mark.parametrize(
    ("body", "content_type", "field", "message"),
    [
        (b"[1]", wire.JSON, None, "the body must be an object of fields in application/json"),
        (b"{", wire.JSON, None, "the body is not application/json"),
        (b'{"seed": 1, "seed": 2}', wire.JSON, "seed", "is there twice"),
        (b'{"image": {"data": 1, "data": 2}}', wire.JSON, "data", "is there twice"),
        (TWICE, wire.MSGPACK, None, "a field is there twice"),
        (b"\xde\x00\x02" + TWICE[1:], wire.MSGPACK, None, "a field is there twice"),
        (b"\xdf\x00\x00\x00\x02" + TWICE[1:], wire.MSGPACK, None, "a field is there twice"),
        (b"", wire.MSGPACK, None, "the body is not application/msgpack"),
        (b"\x81\x01\x01", wire.MSGPACK, None, "the body must be an object of fields in application/msgpack"),
    ],
)
def test_malformed_body_is_refused(body: bytes, content_type: str, field: str | None, message: str) -> None:
    error = refused(body, content_type)

    assert (error.status, error.code, error.field, error.message) == (400, "malformed_body", field, message)


def test_unknown_media_type_is_refused() -> None:
    error = refused(b"{}", "text/plain; charset=x")

    assert (error.status, error.code) == (415, "unsupported_media_type")
    assert error.message.endswith("got text/plain")


@pytest.mark.parametrize("fields", [1, 15, 16, 9_000])
def test_large_maps_are_read(fields: int) -> None:
    row = {f"f{number}": number for number in range(fields)}

    assert wire.read({"body": msgspec.msgpack.encode(row)}, wire.MSGPACK) == row
    assert wire.read({"body": json.dumps(row).encode()}, f"{wire.JSON}; charset=utf-8") == row


MANY = b"\x81\xa5state\xdd\x00\x01\x00\x00"  # a map whose state is an array of 65,536 values


@pytest.mark.parametrize(
    ("body", "media_type", "field"),
    [
        (b'{"state":[' + b"[]," * 20_000 + b"0]}", wire.JSON, None),
        # Found by fuzzing: 1 s of a core for 4 MB.
        (b'{"x":[' + b",".join([b'{"a":' * 300 + b"0" + b"}" * 300] * 50) + b"]}", wire.JSON, None),
        (b'{"x":[' + b",".join([b"[" * 300 + b"]" * 300] * 50) + b"]}", wire.JSON, None),
        (b"{" + b",".join(b'"%d":0' % n for n in range(10_001)) + b"}", wire.JSON, None),
        (msgspec.msgpack.encode({str(n): 0 for n in range(10_001)}), wire.MSGPACK, None),
        (MANY + b"\x90" * 65_536, wire.MSGPACK, "state"),
        (MANY + b"\x00" * 65_536, wire.MSGPACK, "state"),
        (b"\x81\xa5image\x81\xa5shape" + MANY[7:] + b"\x90" * 65_536, wire.MSGPACK, "image"),
        (b"\x81\xa5image\x81" + MANY[7:] + b"\x90" * 65_536 + b"\x00", wire.MSGPACK, None),
    ],
)
def test_millions_of_values_are_not_read(body: bytes, media_type: str, field: str | None) -> None:
    error = refused(body, media_type)

    assert (error.status, error.code, error.field) in [
        (413, "too_large", field),
        (400, "malformed_body", None),
    ]


def test_a_large_picture_is_read() -> None:
    pixels = {"shape": [200, 200, 3], "dtype": "uint8", "data": bytes(120_000)}
    row = {"image": pixels, "image.a": bytes(100_000), "image.b": "A" * 100_000, "state": [1.5] * 1000}

    assert wire.read({"body": msgspec.msgpack.encode(row)}, wire.MSGPACK) == row


@pytest.mark.parametrize("accept", [wire.JSON, wire.MSGPACK])
@pytest.mark.parametrize(
    "error", [UnknownField("\udfff", "got \ud800"), MalformedBody("a\udc00b", "\udfff is there twice")]
)
def test_no_text_of_a_client_makes_an_answer_unserialisable(error: RequestError, accept: str) -> None:
    data, _ = wire.serialise(error.body(), accept)

    assert b"?" in data


@pytest.mark.parametrize(
    ("sent", "given", "name"),
    [
        ("robot-7/42", "uuid", "robot-7/42"),
        ("", "uuid", "uuid"),
        ("x" * 100, "uuid", "x" * 64),
        ("a\r\nSet-Cookie: b=\u00e9\udfff", "uuid", "aSet-Cookie:b="),
        ("\u00e9", "uuid", "uuid"),
        ("", None, "unknown"),
    ],
)
def test_request_id_is_the_clients_made_harmless(sent: str, given: str | None, name: str) -> None:
    assert wire.request_id(sent, given) == name


@pytest.mark.parametrize(
    ("header", "arrived_s"),
    [
        ("t=1700000000.5", 1_700_000_000.5),
        ("1700000000500", 1_700_000_000.5),
        ("t=1700000009.0", 1_700_000_001.0),  # a clock ahead of ours
        ("soon", 1_700_000_001.0),
        ("nan", 1_700_000_001.0),
        ("-5", 1_700_000_001.0),
        ("", 1_700_000_001.0),
    ],
)
def test_arrival(header: str, arrived_s: float) -> None:
    assert wire.arrival(header, 1_700_000_001.0) == arrived_s
