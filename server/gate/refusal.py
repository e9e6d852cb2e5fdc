"""What the gate answers by itself, in the contract's JSON."""

import json
from dataclasses import dataclass

JSON = b"application/json"


@dataclass(frozen=True)
class Answer:
    """One response: of TorchServe, or of the gate."""

    status: int
    kind: bytes
    body: bytes
    # Further headers: names in lower case.
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Refusal(Exception):
    """A request is answered with an error and goes no further. `field` names the request's field at fault."""

    def __init__(
        self, status: int, code: str, message: str, field: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        # The one method that is taken, where another one was sent.
        self.allow = ""

    def answer(self, request_id: str) -> Answer:
        """Return it as a response."""
        error = {"code": self.code, "field": self.field, "message": self.message}
        body = json.dumps({"error": error, "request_id": request_id}).encode()
        headers = [(b"request-id", request_id.encode("latin-1"))]
        if self.allow:
            headers.append((b"allow", self.allow.encode()))
        if self.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % self.retry_after_s))
        return Answer(self.status, JSON, body, tuple(headers))


def bad_request(message: str) -> Refusal:
    """It is no HTTP request that this server reads."""
    return Refusal(400, "bad_request", message)


def malformed(message: str, field: str | None = None) -> Refusal:
    """The body is not what its content type says."""
    return Refusal(400, "malformed_body", message, field)


def too_large(limit: int) -> Refusal:
    """The body is longer than the server takes."""
    return Refusal(413, "too_large", f"a request has at most {limit >> 20} MiB")


def expired(deadline_ms: float) -> Refusal:
    """No answer came within the time that the request allows."""
    return Refusal(504, "deadline_expired", f"no answer within {deadline_ms:g} ms", "deadline_ms")


def not_found() -> Refusal:
    """No such path, model or version."""
    return Refusal(404, "not_found", "no such path, model or version; send POST /predictions/<model>")


def wrong_method(allow: str = "POST") -> Refusal:
    """Each path takes one method."""
    refusal = Refusal(405, "method_not_allowed", f"send {allow}")
    refusal.allow = allow
    return refusal


# These are answered and never raised: an exception that is raised again and again keeps every traceback.
UNAVAILABLE = Refusal(502, "unavailable", "TorchServe gave no answer")
FAILED = Refusal(500, "server_error", "the server failed on this request")
OVERLOADED = Refusal(429, "overloaded", "the queue is full; wait as long as Retry-After says", None, 1)
TIMEOUT = Refusal(504, "timeout", "the server did not answer in time")
SLOW = Refusal(408, "slow_request", "the request did not arrive in time")
NOT_READY = Refusal(503, "not_ready", "loading, failed or draining", None, 1)
