"""Why there is no chunk. A robot that catches `PolicyFailure` holds still or goes on with the chunk it has.

PolicyFailure
├── PolicyError          the server answered, and refused: its status, code, field and message
│   ├── RequestRefused   4xx: the request must change; `field` names what is wrong with it
│   ├── AccessDenied     401, 403, a certificate is missing: api_key, ca or cert must change
│   ├── Overloaded       429, 503: the next observation may be answered; `retry_after_s` says when
│   └── DeadlineExpired  504: the answer would have come too late
├── PolicyUnavailable    no answer: nothing listens, the connection broke, or the timeout passed
└── InvalidAnswer        the server answered 200 with something that no robot should execute
"""

from __future__ import annotations

from typing import ClassVar

# A proxy's refusals of a request's way in, which it answers with 400.
_ACCESS = frozenset({"no_certificate", "bad_certificate", "tls_required"})
# 503 that says nothing about load: this observation's chunk was withheld, or the policy failed on it.
_OF_THE_POLICY = frozenset({"unsafe_action", "policy_failed"})
# 4xx that may succeed when it is sent again: the body came too slowly, or there were too many requests.
_PASSING = frozenset({408, 425, 429})


class PolicyFailure(Exception):
    """No chunk came back; the message says what to do."""

    # Whether the same kind of request will fail for ever: something has to be changed, waiting won't help.
    final: ClassVar[bool] = False
    # What the server's log calls the request; None where none was sent or named.
    request_id: str | None = None


class PolicyError(PolicyFailure):
    """The server refused the request.

    `status` is HTTP's; `code`, `field` and `message` are the server's own: `field` names the request's field
    at fault, or is None. `retry_after_s` is how long the server asks to wait [s], or None.
    """

    def __init__(
        self,
        status: int,
        code: str,
        field: str | None,
        message: str,
        *,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        place = f", field {field!r}" if field else ""
        named = f" [request {request_id}]" if request_id else ""
        super().__init__(f"{status} {code}{place}: {message}{named}")
        self.status = status
        self.code = code
        self.field = field
        self.message = message
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class RequestRefused(PolicyError):
    """The request is wrong: a field, its size, its path. It must change."""

    final = True


class AccessDenied(PolicyError):
    """The server doesn't let this robot in: pass `api_key`, or `cert`, and `https` where it speaks TLS."""

    final = True


class Overloaded(PolicyError):
    """The server has too much to do, or is just starting."""


class DeadlineExpired(PolicyError):
    """The answer would have come after the request's deadline, or the server's own time was up."""


class PolicyUnavailable(PolicyFailure):
    """The server did not answer."""


class InvalidAnswer(PolicyFailure):
    """The answer is no chunk of finite actions: the server is of another version, or is no policy server."""


def kind_of(status: int, code: str) -> type[PolicyError]:
    """Return the exception for a status and the server's code."""
    if status in {401, 403} or code in _ACCESS:
        return AccessDenied
    if status == 429 or (status == 503 and code not in _OF_THE_POLICY):
        return Overloaded
    if status == 504:
        return DeadlineExpired
    return RequestRefused if 400 <= status < 500 and status not in _PASSING else PolicyError
