"""The head of a request is read strictly, and so are the pieces of its body."""

import pytest

from server.gate.head import Chunks, Head, begins_wrong, read_head
from server.gate.refusal import Refusal

POST = b"POST /predictions/vla HTTP/1.1"


def head(*lines: bytes, first: bytes = POST) -> Head:
    return read_head(b"\r\n".join([first, *lines]))


def refused(*lines: bytes, first: bytes = POST) -> str:
    with pytest.raises(Refusal) as caught:
        head(*lines, first=first)
    assert (caught.value.status, caught.value.code) == (400, "bad_request")
    return caught.value.message


def test_a_head_is_method_path_headers_and_length() -> None:
    found = head(b"Host: x", b"X-A:\t a\xfc b \t", b"Content-Length: 12", first=b"PUT /a?b=c HTTP/1.1")

    headers = {"host": "x", "x-a": "a\xfc b", "content-length": "12"}
    assert found == Head("PUT", "/a", headers, 12, keep_alive=True)
    assert (found.continues, found.request_id) == (False, "")


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Close", False),
        (b"1.1", b"keep-alive", True),
        (b"1.0", b"", False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_connections_are_kept(version: bytes, connection: bytes, keep_alive: bool) -> None:  # noqa: FBT001
    assert (
        head(b"Host: x", b"Connection: " + connection, first=b"GET / HTTP/" + version).keep_alive
        is keep_alive
    )


def test_the_length_of_a_body() -> None:
    assert head(b"Host: x").length == 0
    assert head(b"Host: x", b"Content-Length: " + b"9" * 18).length == 10**18 - 1
    assert head(b"Host: x", b"Transfer-Encoding: Chunked").length is None
    assert head(first=b"GET / HTTP/1.0").length == 0


CODING = "Transfer-Encoding may say chunked only, in HTTP/1.1, without a Content-Length"
NUMBER = "Content-Length is not a number of bytes"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "the header Host is missing"),
        ([b"Host: x", b"Host: x"], "the header host is there twice"),
        ([b"Host: x", b"A B: c"], "a header is not `Name: value`"),
        ([b"Host: x", b"A : c"], "a header is not `Name: value`"),
        ([b"Host: x", b"A: \x01"], "a header is not `Name: value`"),
        ([b"Host: x", b"Expect: 200"], "the header Expect may say 100-continue only"),
        ([b"Host: x", b"Content-Length: -1"], NUMBER),
        ([b"Host: x", b"Content-Length: "], NUMBER),
        ([b"Host: x", b"Content-Length: " + b"9" * 19], NUMBER),
        (
            [b"Host: x", b"Content-Length: 3", b"Content-Length: 3"],
            "the header content-length is there twice",
        ),
        ([b"Host: x", b"Content-Type: a/b", b"Content-Type: a/b"], "the header content-type is there twice"),
        ([b"Host: x", *[b"Expect: 100-continue"] * 2], "the header expect is there twice"),
        ([b"Host: x", *[b"Transfer-Encoding: chunked"] * 2], "the header transfer-encoding is there twice"),
        ([b"Host: x", b"Transfer-Encoding: gzip"], CODING),
        ([b"Host: x", b"Transfer-Encoding: chunked", b"Content-Length: 3"], CODING),
        ([b"Host: x", *[b"A: b"] * 100], "more than 100 headers"),
    ],
)
def test_heads_that_are_refused(lines: list[bytes], message: str) -> None:
    assert refused(*lines) == message


@pytest.mark.parametrize(
    "first",
    [b"post / HTTP/1.1", b"POST / HTTP/1.2", b"POST / HTTP/2.0", b"POST  / HTTP/1.1", b"POST /\xfc HTTP/1.1"],
)
def test_first_lines_that_are_refused(first: bytes) -> None:
    assert refused(b"Host: x", first=first) == "not an HTTP/1.1 request that this server reads"


def test_chunks_are_of_http_1_1() -> None:
    assert refused(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0") == CODING


def test_a_hundred_headers_fit_and_others_may_repeat() -> None:
    assert head(b"Host: x", *[b"A: b"] * 98, b"A: c").headers == {"host": "x", "a": "c"}


def test_a_client_may_wait_before_it_sends_the_body() -> None:
    assert head(b"Host: x", b"Expect: 100-Continue").continues


def test_a_request_id_is_cut_to_what_is_harmless() -> None:
    assert head(b"Host: x", b"X-Request-Id: a<b>\"c' d:/+=@-_.Z9").request_id == "abcd:/+=@-_.Z9"
    assert head(b"Host: x", b"X-Request-Id: " + b"i" * 70).request_id == "i" * 64


@pytest.mark.parametrize(
    ("data", "wrong"),
    [(b"A", False), (b"Z", False), (b"@", True), (b"[", True), (b"\x16", True), (b"GET /\n\n", True)],
)
def test_beginnings(data: bytes, wrong: bool) -> None:  # noqa: FBT001
    assert begins_wrong(data) is wrong


BODY = b"5\r\nhello\r\nA\r\n, world!! \r\n0\r\n\r\n"


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_chunks_come_in_any_pieces(step: int) -> None:
    chunks, data, ends = Chunks(), bytearray(), []
    for begin in range(0, len(BODY), step):
        data += BODY[begin : begin + step]
        ends.append(chunks.feed(data, 100))

    assert ends == [False] * (len(ends) - 1) + [True]
    assert (bytes(chunks.body), bytes(data), chunks.ended) == (b"hello, world!! ", b"", True)


def test_what_follows_the_last_chunk_stays() -> None:
    chunks, data = Chunks(), bytearray(BODY + b"GET")

    assert chunks.feed(data, 100)
    assert data == b"GET"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"zz\r\n", "a chunk's size is no number"),
        (b"\r\n", "a chunk's size is no number"),
        (b"5;a=b\r\n", "a chunk's size is no number"),
        (b"123456789\r\n", "a chunk's size is no number"),
        (b"1" * 256, "a chunk's size is no number"),
        (b"5\r\nhello!!", "a chunk does not end where its size says"),
        (b"0\r\nA: b\r\n\r\n", "nothing may follow the last chunk"),
        (b"1\r\na\r\n" * 8193, "more than 8192 chunks"),
    ],
)
def test_chunks_that_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(Refusal) as caught:
        Chunks().feed(bytearray(data), 100_000)

    assert (caught.value.status, caught.value.message) == (400, message)


def test_chunks_up_to_their_bounds() -> None:
    assert Chunks().feed(bytearray(b"1\r\na\r\n" * 8192 + b"0\r\n\r\n"), 100_000)
    assert not Chunks().feed(bytearray(b"1" * 255), 100)
    long = Chunks()
    assert not long.feed(bytearray(b"ffffffff\r\n" + b"x" * 102), 100)
    assert len(long.body) == 102  # one byte too many, and the line's end: what tells that it is too long
