"""Why there is no chunk. A robot that catches `PolicyFailure` holds still or goes on with the chunk it has.

PolicyFailure
├── PolicyError        the server answered, and refused: its status, code, field and message
├── PolicyUnavailable  no answer: nothing listens, the connection broke, or the timeout passed
└── InvalidAnswer      the server answered 200 with something that no robot should execute
"""

from __future__ import annotations


class PolicyFailure(Exception):
    """No chunk came back; the message says what to do."""


class PolicyError(PolicyFailure):
    """The server refused the request.

    `status` is HTTP's; `code`, `field` and `message` are the server's own: `field` names the request's field
    at fault, or is None. 4xx: change the request; 503 and 504: the next observation may be answered.
    """

    def __init__(self, status: int, code: str, field: str | None, message: str) -> None:
        place = f", field {field!r}" if field else ""
        super().__init__(f"{status} {code}{place}: {message}")
        self.status = status
        self.code = code
        self.field = field
        self.message = message


class PolicyUnavailable(PolicyFailure):
    """The server did not answer."""


class InvalidAnswer(PolicyFailure):
    """The answer is no chunk of finite actions: the server is of another version, or is no policy server."""
