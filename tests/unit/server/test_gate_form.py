"""A form is read strictly, and handed on as the same MessagePack."""

import msgspec
import pytest

from server.gate import form
from server.gate.refusal import Refusal


def part(name: str, data: bytes = b"x", *lines: str) -> bytes:
    head = [f'Content-Disposition: form-data; name="{name}"', *lines]
    return "\r\n".join(["--b", *head, "", ""]).encode() + data + b"\r\n"


def refused(body: bytes, boundary: str = "b") -> tuple[int, str, str | None, str]:
    with pytest.raises(Refusal) as caught:
        form.fields(body, boundary)
    error = caught.value
    return error.status, error.code, error.field, error.message


def malformed(message: str, field: str | None = None) -> tuple[int, str, str | None, str]:
    return 400, "malformed_body", field, message


@pytest.mark.parametrize(
    ("header", "kind", "parameters"),
    [
        ("", "", {}),
        ("Application/JSON", "application/json", {}),
        (" text/plain ; charset=UTF-8", "text/plain", {"charset": "UTF-8"}),
        ("text/plain;", "text/plain", {}),
        ("text/plain; ", "text/plain", {}),
        (
            'multipart/form-data; Boundary="a \\"b" ; x=1',
            "multipart/form-data",
            {"boundary": 'a "b', "x": "1"},
        ),
    ],
)
def test_content_types(header: str, kind: str, parameters: dict[str, str]) -> None:
    assert form.media_type(header) == (kind, parameters)


@pytest.mark.parametrize("charset", ["utf-8", "utf8", "us-ascii", "ascii", "UTF-8"])
def test_charsets_that_are_utf_8(charset: str) -> None:
    assert form.media_type(f"a/b; charset={charset}")[0] == "a/b"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("a/b; charset=latin-1", "text is read as UTF-8; the Content-Type names another charset"),
        ("a/b; x", "the header Content-Type can't be read"),
        ("a/b; x=1; X=2", "the header Content-Type says x twice"),
    ],
)
def test_content_types_that_are_refused(header: str, message: str) -> None:
    with pytest.raises(Refusal) as caught:
        form.media_type(header)

    assert (caught.value.status, caught.value.code, caught.value.message) == (400, "malformed_body", message)


@pytest.mark.parametrize("end", [b"--b--", b"--b--\r\n", b"--b-- \t\r\n"])
def test_fields_are_what_lies_between_boundaries(end: bytes) -> None:
    plain = part("b", b"\r\n--c\r\n", "Content-Type: image/png", "Content-Transfer-Encoding: Binary")

    assert form.fields(part("a", b"") + plain + end, "b") == {"a": b"", "b": b"\r\n--c\r\n"}


@pytest.mark.parametrize("boundary", ["x" * 70, "a b", "'()+_,-./:=?Z9"])
def test_boundaries(boundary: str) -> None:
    body = (part("a") + b"--b--").replace(b"--b", b"--" + boundary.encode())

    assert form.fields(body, boundary) == {"a": b"x"}


@pytest.mark.parametrize("boundary", ["", "x" * 71, "b ", "ü", "a;b"])
def test_boundaries_that_are_refused(boundary: str) -> None:
    message = "multipart/form-data needs a boundary of 1 to 70 characters in its Content-Type"

    assert refused(part("a") + b"--b--", boundary) == malformed(message)


NAMELESS = malformed('each part needs `Content-Disposition: form-data; name="..."`')
ENDLESS = malformed("the multipart body does not end with its boundary")
EMPTY = malformed("the multipart body has no readable part")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param(b"garbage", EMPTY, id="garbage"),
        pytest.param(b"--b--", EMPTY, id="no part"),
        pytest.param(part("a")[:-2], malformed("the multipart body is cut short", "a"), id="cut short"),
        pytest.param(part("a") + b"--b", ENDLESS, id="no end"),
        pytest.param(part("a") + b"--bx-", ENDLESS, id="another end"),
        pytest.param(part("a") + b"--b--X", ENDLESS, id="more after the end"),
        pytest.param(part("a") * 2 + b"--b--", malformed("is there twice", "a"), id="twice"),
        pytest.param(part("") + b"--b--", NAMELESS, id="empty name"),
        pytest.param(part("a" * 129) + b"--b--", NAMELESS, id="long name"),
        pytest.param(part("a").replace(b"form-data", b"attachment") + b"--b--", NAMELESS, id="attachment"),
        pytest.param(b"--b\r\nX: y\r\n\r\nx\r\n--b--", NAMELESS, id="other header"),
        pytest.param(
            part("a", b"x", "Content-Transfer-Encoding: base64") + b"--b--",
            malformed("send the bytes as they are: no Content-Transfer-Encoding", "a"),
            id="base64",
        ),
        pytest.param(
            part("a", b"x", "Content-Type: multipart/mixed") + b"--b--",
            malformed("a part may not be multipart itself", "a"),
            id="nested",
        ),
        pytest.param(
            part("a", b"x", "X: y", "x: z") + b"--b--", malformed("a part has a header twice"), id="headers"
        ),
        pytest.param(
            part("a").replace(b"name", b"n\xff") + b"--b--",
            malformed("a part's headers are not UTF-8"),
            id="bytes",
        ),
        pytest.param(
            part("a").replace(b"; name", b"; name; name") + b"--b--",
            malformed("the header Content-Disposition can't be read"),
            id="disposition",
        ),
        pytest.param(
            part("a", b"x", "X: " + "y" * 1024) + b"--b--",
            malformed("a part's headers do not end within 1024 bytes"),
            id="long head",
        ),
        pytest.param(
            b"".join(part(str(index)) for index in range(65)) + b"--b--",
            malformed("more than 64 fields"),
            id="fields",
        ),
    ],
)
def test_forms_that_are_refused(body: bytes, error: tuple[int, str, str | None, str]) -> None:
    assert refused(body) == error


def test_as_many_and_as_long_as_allowed() -> None:
    names = ["n" * 128, *map(str, range(63))]
    body = b"".join(part(name) for name in names) + b"--b--"

    assert list(form.fields(body, "b")) == names


@pytest.mark.parametrize(("length", "fits"), [(1024, True), (1025, False)])
def test_the_headers_of_a_part_are_bounded(length: int, fits: bool) -> None:  # noqa: FBT001
    """With the line ends before and after them."""
    plain = part("a", b"", "X: ")
    body = part("a", b"", "X: " + "y" * (length - (len(plain) - len("--b\r\n")))) + b"--b--"

    if fits:
        assert form.fields(body, "b") == {"a": b""}
    else:
        assert refused(body) == malformed("a part's headers do not end within 1024 bytes")


@pytest.mark.parametrize("count", [1, 15, 16, 64])
def test_fields_become_the_same_messagepack(count: int) -> None:
    found = {f"ü{index}": bytes(index * 300) for index in range(count)}

    assert msgspec.msgpack.decode(form.to_msgpack(found)) == found


@pytest.mark.parametrize("separator", [b"&", b";"])
def test_urlencoded_fields_are_counted(separator: bytes) -> None:
    form.count_urlencoded(separator.join([b"a=1"] * 64))
    with pytest.raises(Refusal, match="more than 64 fields"):
        form.count_urlencoded(separator.join([b"a=1"] * 65))


JSON, PACKED = "application/json", "application/msgpack"


@pytest.mark.parametrize(
    ("kind", "body", "deadline_ms"),
    [
        (JSON, b'{"deadline_ms": 120.5}', 120.5),
        (JSON, b'{"deadline_ms" : "80"}', 80),
        (JSON, b'{"deadline_ms": 0.5}', 0.5),
        (JSON, b'{"command": "deadline_ms", "x": 5}', None),
        (JSON, b'{"deadline_ms": null}', None),
        (JSON, b'{"deadline_ms": -5}', None),
        (JSON, b'{"deadline_ms": 0}', None),
        (JSON, b'{"deadline_ms": 1e9}', None),
        (JSON, b'{"deadline_ms": 999999999}', 999999999),
        (JSON, b'{"deadline_ms": 1e5}', 1e5),
        (JSON, b'{"deadline_ms": 1-5}', None),
        ("text/plain", b'{"deadline_ms": 5}', None),
        ("", b"", None),
    ],
)
def test_deadlines_are_found_in_text(kind: str, body: bytes, deadline_ms: float | None) -> None:
    assert form.deadline_ms(kind, body, None) == deadline_ms


@pytest.mark.parametrize(
    ("value", "deadline_ms"),
    [
        (0, None),
        (1, 1),
        (127, 127),
        (128, 128),
        (1000, 1000),
        (100_000, 100_000),
        (2**33, None),
        (2**29, 2**29),
        (120.5, 120.5),
        (-5, None),
        ("80", 80),
        ("", None),
        ("8" * 40, None),
        (None, None),
        (True, None),
        ([5], None),
    ],
)
def test_deadlines_are_found_in_messagepack(value: object, deadline_ms: float | None) -> None:
    body = msgspec.msgpack.encode({"command": "go", "deadline_ms": value, "seed": 1})

    assert form.deadline_ms(PACKED, body, None) == deadline_ms


def test_a_short_float_is_read_and_a_cut_one_is_not() -> None:
    body = b"\x81\xabdeadline_ms\xca\x42\xf1\x00\x00"

    assert form.deadline_ms(PACKED, body, None) == 120.5
    assert form.deadline_ms(PACKED, body[:-1], None) is None
    assert form.deadline_ms(PACKED, body[:-5], None) is None
    assert form.deadline_ms(PACKED, b"\x80", None) is None


def test_the_deadline_of_a_form_is_its_field() -> None:
    assert form.deadline_ms(form.MULTIPART, b"", {"deadline_ms": b"5.5"}) == 5.5
    assert form.deadline_ms(form.MULTIPART, b"", {"deadline_ms": b"soon"}) is None
    assert form.deadline_ms(JSON, b'{"deadline_ms": 5}', {}) is None


def test_other_content_types_are_named() -> None:
    refusal = form.unsupported("text/plain")

    assert (refusal.status, refusal.code) == (415, "unsupported_media_type")
    assert (
        refusal.message == "send multipart/form-data, application/json or application/msgpack; got text/plain"
    )
    assert form.unsupported("").message.endswith("; got none")
    assert form.unsupported("x" * 100).message.endswith("got " + "x" * 64)
