"""One client's connection: whole requests in, answers out, in order, each phase within its time."""

import asyncio
import logging
import time
import uuid
from http import HTTPStatus
from typing import cast

from server.gate.head import LONGEST_HEAD, Chunks, Head, begins_wrong, read_head
from server.gate.hop import Hop
from server.gate.queue import Ticket
from server.gate.refusal import FAILED, SLOW, TIMEOUT, Answer, Refusal, bad_request, expired, too_large
from server.gate.routes import LARGEST_BODY, check, is_model, of_torchserve, prediction
from server.gate.torchserve import Exchange

logger = logging.getLogger(__name__)

# Longest: without a request, for a head, a body, an answer, for its reader, for what is sent in vain [s].
IDLE_S, HEAD_S, BODY_S, ANSWER_S, READ_S, LINGER_S = 75.0, 5.0, 10.0, 60.0, 10.0, 2.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
# What is read ahead of an answer [bytes].
AHEAD = 65_536


class Client(asyncio.Protocol):
    """One connection. `phase` is idle, head, body, answer, or closing."""

    def __init__(self, hop: Hop) -> None:
        self._hop = hop
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._head: Head | None = None
        self._chunks: Chunks | None = None
        self._exchange: Exchange | Ticket | None = None
        self._timer: asyncio.TimerHandle | None = None
        # When the current request's first byte came [s since the epoch].
        self._arrived_s = 0.0
        self._address = ""
        self.phase = "idle"
        # On the loop's clock: when the phase began, and when it is over [s].
        self.since_s = self.until_s = 0.0

    @property
    def buffered(self) -> int:
        """Bytes of an unfinished request."""
        return len(self._buffer) + (len(self._chunks.body) if self._chunks else 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request."""
        self._transport = cast(asyncio.Transport, transport)
        self._address = str((transport.get_extra_info("peername") or ("",))[0])
        self._enter("idle", IDLE_S)
        self._hop.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; nobody waits for its answer any more."""
        self._transport = None
        self._settle()
        self._hop.remove(self)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self.phase == "closing":
            return
        self._buffer += data
        if self.phase == "answer":
            if len(self._buffer) > AHEAD and self._transport:
                self._transport.pause_reading()
            return
        self._advance()

    def eof_received(self) -> bool:
        """A client that closes its side has hung up: nothing more is done for it."""
        return False

    def close(self) -> None:
        """Close at once."""
        if self._transport:
            self._transport.abort()

    def time_out(self) -> None:
        """The phase is over before the client, or the server, was done with it."""
        if self.phase in ("idle", "closing"):
            self.close()
        elif self.phase == "answer":
            self._refuse(TIMEOUT)
        else:
            self._refuse(SLOW)

    def _advance(self) -> None:
        """Take what is there as far as it goes."""
        try:
            while self.phase in ("idle", "head", "body") and self._buffer:
                if not (self._read_head() if self._head is None else self._read_body()):
                    return
        except Refusal as refusal:
            self._refuse(refusal)
        except Exception:
            logger.exception("a request could not be read")
            self._refuse(FAILED)

    def _read_head(self) -> bool:
        if self.phase == "idle":
            self._arrived_s = time.time()
            self._enter("head", HEAD_S)
        end = self._buffer.find(b"\r\n\r\n", 0, LONGEST_HEAD)
        if end < 0:
            if begins_wrong(self._buffer):
                raise bad_request("not an HTTP/1.1 request that this server reads; it speaks no TLS")
            if len(self._buffer) >= LONGEST_HEAD:
                raise bad_request(f"the headers are longer than {LONGEST_HEAD} bytes")
            return False
        head = self._head = read_head(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        if head.length is not None and head.length > LARGEST_BODY:
            raise too_large(LARGEST_BODY)
        if is_model(head.path) or head.method != "GET":
            check(head)
        self._chunks = Chunks() if head.length is None else None
        if head.length == 0:
            self._answer(b"")
            return True
        self._enter("body", BODY_S)
        if head.continues and not self._buffer and self._transport:
            self._transport.write(CONTINUE)
        return bool(self._buffer)

    def _read_body(self) -> bool:
        head, chunks = self._head, self._chunks
        assert head is not None
        if chunks is not None:
            complete = chunks.feed(self._buffer, LARGEST_BODY)
            if len(chunks.body) > LARGEST_BODY + 2:
                raise too_large(LARGEST_BODY)
            body = bytes(chunks.body) if complete else b""
        else:
            assert head.length is not None
            complete = len(self._buffer) >= head.length
            body = bytes(memoryview(self._buffer)[: head.length]) if complete else b""
            del self._buffer[: head.length if complete else 0]
        if complete:
            self._answer(body)
        return complete

    def _answer(self, body: bytes) -> None:
        """Hand a whole request on."""
        head = self._head
        assert head is not None
        self._enter("answer", ANSWER_S)
        if not is_model(head.path):
            self._exchange = self._hop.own(head.path, self._done)
            return
        asked = prediction(head, body, self._arrived_s, self._hop.ours)
        if asked.deadline_ms is not None:
            left_s = asked.deadline_ms / 1000 - (time.time() - self._arrived_s)
            late = expired(asked.deadline_ms)
            self._timer = self._hop.loop.call_later(left_s, self._refuse, late)
        client = head.headers.get("x-client") or self._address
        self._exchange = self._hop.ask(client, asked, self._done)

    def _done(self, found: Answer | Refusal | None) -> None:
        """Pass an answer on."""
        answer = found if isinstance(found, Refusal) else of_torchserve(found)
        if isinstance(answer, Refusal):
            self._refuse(answer)
        else:
            self._send(answer)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with an error. Where the rest of a request may follow, the connection ends with it."""
        self._hop.counters.refusals[refusal.code] += 1
        name = (self._head.request_id if self._head else "") or str(uuid.uuid4())
        self._send(refusal.answer(name))

    def _send(self, answer: Answer) -> None:
        head, whole = self._head, self.phase == "answer"
        self._settle()
        self._hop.counters.answers[answer.status // 100] += 1
        if answer.status < 300:
            self._hop.counters.requests.add(time.time() - self._arrived_s)
        if self._transport is None:
            return
        keep = whole and head is not None and head.keep_alive and not self._hop.draining
        headers = [b"%s: %s\r\n" % pair for pair in answer.headers]
        kind = b"Content-Type: %s\r\n" % answer.kind if answer.kind else b""
        end = b"\r\n" if keep else b"Connection: close\r\n\r\n"
        parts = [LINES[answer.status], kind, *headers, b"Content-Length: %d\r\n" % len(answer.body), end]
        body = b"" if head is not None and head.method == "HEAD" else answer.body
        self._transport.write(b"".join([*parts, body]))
        if keep:
            self._next()
        elif whole:
            self._enter("closing", READ_S)
            self._transport.close()
        else:
            self._linger()

    def _settle(self) -> None:
        """Drop what belongs to one request."""
        if self._timer:
            self._timer.cancel()
        if self._exchange:
            self._exchange.cancel()
        self._timer = self._exchange = self._head = self._chunks = None

    def _next(self) -> None:
        """Wait for the next request, or read one that came ahead."""
        assert self._transport is not None
        self._enter("idle", READ_S if self._transport.get_write_buffer_size() else IDLE_S)
        if self._buffer:
            self._transport.resume_reading()
            self._hop.loop.call_soon(self._advance)

    def _linger(self) -> None:
        """Close, but read what the client still sends: a reset would take the answer from it."""
        assert self._transport is not None
        self._enter("closing", LINGER_S)
        self._buffer.clear()
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _enter(self, phase: str, time_s: float) -> None:
        self.phase = phase
        self.since_s = self._hop.loop.time()
        self.until_s = self.since_s + time_s
