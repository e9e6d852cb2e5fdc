"""The head of an HTTP/1 request, read strictly, and the pieces of a chunked body."""

import re
from dataclasses import dataclass

from server.gate.refusal import bad_request

# Longest request line with all headers [bytes], and most headers.
LONGEST_HEAD = 8192
MOST_HEADERS = 100
# Longest line with a chunk's size [bytes], and most chunks.
LONGEST_CHUNK_LINE = 256
MOST_CHUNKS = 8192
LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]{1,4096}) HTTP/1\.([01])")
# A name, a colon without a space before it, a value without control characters.
HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
# A second one of these would be read by one hop and not by the next.
SINGLE = {"content-length", "transfer-encoding", "content-type", "host", "expect"}
ID = re.compile(r"[^A-Za-z0-9._:/+=@-]")
MAX_ID = 64


@dataclass(frozen=True)
class Head:
    """The head of one request."""

    method: str
    # Without the query, which no model gets.
    path: str
    # By lower-case name.
    headers: dict[str, str]
    # Of the body [bytes]; None: it comes in chunks.
    length: int | None
    keep_alive: bool

    @property
    def request_id(self) -> str:
        """The client's own id, as far as it is harmless; empty without one."""
        return ID.sub("", self.headers.get("x-request-id", ""))[:MAX_ID]

    @property
    def continues(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends the body."""
        return "expect" in self.headers


def begins_wrong(data: bytes | bytearray) -> bool:
    """Whether a head that is not complete can't become one: TLS, another protocol, lines without CR."""
    return not 65 <= data[0] <= 90 or b"\n\n" in data


def read_head(data: bytes) -> Head:
    """Read a head, without the empty line that ends it.

    Raises:
        Refusal: 400: it is not HTTP/1, or leaves open where the body ends.
    """
    first, *lines = data.split(b"\r\n")
    line = LINE.fullmatch(first)
    if line is None:
        raise bad_request("not an HTTP/1.1 request that this server reads")
    if len(lines) > MOST_HEADERS:
        raise bad_request(f"more than {MOST_HEADERS} headers")
    headers = _headers(lines)
    minor = line[3] == b"1"
    if minor and "host" not in headers:
        raise bad_request("the header Host is missing")
    if headers.get("expect", "100-continue").lower() != "100-continue":
        raise bad_request("the header Expect may say 100-continue only")
    connection = headers.get("connection", "").lower()
    keep_alive = "close" not in connection and (minor or "keep-alive" in connection)
    path = line[2].partition(b"?")[0].decode()
    return Head(line[1].decode(), path, headers, _length(headers, chunks=minor), keep_alive)


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        match = HEADER.fullmatch(line)
        if match is None:
            raise bad_request("a header is not `Name: value`")
        name, value = match[1].decode().lower(), match[2].decode("latin-1").rstrip(" \t")
        if name in headers and name in SINGLE:
            raise bad_request(f"the header {name} is there twice")
        headers[name] = value
    return headers


def _length(headers: dict[str, str], *, chunks: bool) -> int | None:
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None or not chunks:
            raise bad_request("Transfer-Encoding may say chunked only, in HTTP/1.1, without a Content-Length")
        return None
    if length is None:
        return 0
    if not re.fullmatch("[0-9]{1,18}", length):
        raise bad_request("Content-Length is not a number of bytes")
    return int(length)


class Chunks:
    """Takes a chunked body apart, as it comes."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.ended = False
        self._count = 0
        # Of the current chunk, with the line's end after it [bytes]; None: its size comes next.
        self._left: int | None = None

    def feed(self, data: bytearray, limit: int) -> bool:
        """Take what is there from the front of `data`; True once the body is complete.

        A body of more than `limit` bytes is never complete; more than `limit + 2` are then in `body`.

        Raises:
            Refusal: 400: the framing is broken.
        """
        while True:
            if self._left is None:
                if not self._size(data, limit):
                    return False
                if self.ended:
                    return True
            assert self._left is not None
            taken = data[: self._left]
            del data[: self._left]
            self._left -= len(taken)
            self.body += taken
            if self._left or len(self.body) > limit + 2:
                return False
            if self.body[-2:] != b"\r\n":
                raise bad_request("a chunk does not end where its size says")
            del self.body[-2:]
            self._left = None

    def _size(self, data: bytearray, limit: int) -> bool:
        """Read the line with the next chunk's size; False: it is not complete yet."""
        end = data.find(b"\r\n", 0, LONGEST_CHUNK_LINE)
        if end < 0:
            if len(data) >= LONGEST_CHUNK_LINE:
                raise bad_request("a chunk's size is no number")
            return False
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", line := bytes(data[:end])):
            raise bad_request("a chunk's size is no number")
        if not (size := int(line, 16)):
            if len(data) < end + 4:
                return False
            if data[end + 2 : end + 4] != b"\r\n":
                raise bad_request("nothing may follow the last chunk")
            del data[: end + 4]
            self.ended = True
            return True
        del data[: end + 2]
        self._count += 1
        if self._count > MOST_CHUNKS:
            raise bad_request(f"more than {MOST_CHUNKS} chunks")
        # One that is too long is read no further than the limit.
        self._left = min(size, limit + 1) + 2
        return True
