"""The errors of a request; each type owns its HTTP status and a stable code.

RequestError
├── MissingField          400  missing_field
├── UnknownField          400  unknown_field
├── MalformedBody         400  malformed_body
├── BadImage              400  bad_image
├── TooLarge              413  too_large
├── UnsupportedMediaType  415  unsupported_media_type
├── InvalidValue          422  invalid_value
├── Overloaded            503  overloaded
├── UnsafeAction          503  unsafe_action
├── PolicyFailed          503  policy_failed
└── DeadlineExpired       504  deadline_expired

`SpecError` is the operator's: an artifact that can't be served. It never reaches a client. Nor does `Later`:
the gate asks again.
"""

from typing import ClassVar


class RequestError(Exception):
    """One request failed; its batch-mates are untouched. `field` names the request's field at fault."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "bad_request"

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field = None if field is None else _writable(field)
        self.message = _writable(message)

    def body(self) -> dict[str, object]:
        """Return the JSON body of the answer."""
        return {"error": {"code": self.code, "field": self.field, "message": self.message}}


class MissingField(RequestError):
    """A field that the policy needs was not sent."""

    code = "missing_field"


class UnknownField(RequestError):
    """A field that the policy does not know was sent; the message lists those it knows."""

    code = "unknown_field"


class MalformedBody(RequestError):
    """The body could not be read as its content type says."""

    code = "malformed_body"


class BadImage(RequestError):
    """An image could not be decoded."""

    code = "bad_image"


class TooLarge(RequestError):
    """A field is larger than the server takes."""

    status = 413
    code = "too_large"


class UnsupportedMediaType(RequestError):
    """The content type is none of those that the server reads."""

    status = 415
    code = "unsupported_media_type"


class InvalidValue(RequestError):
    """A field has the right form and a value that the policy can't use."""

    status = 422
    code = "invalid_value"


class Overloaded(RequestError):
    """Decoding this request's pictures would delay the others of its batch."""

    status = 503
    code = "overloaded"


class UnsafeAction(RequestError):
    """The policy's action broke a safety limit and the spec says to reject it."""

    status = 503
    code = "unsafe_action"


class PolicyFailed(RequestError):
    """The policy itself failed on this request."""

    status = 503
    code = "policy_failed"


class DeadlineExpired(RequestError):
    """The request was older than its `deadline_ms` before it was answered."""

    status = 504
    code = "deadline_expired"


class Later(RequestError):
    """Not ready yet: the gate asks again, by its ticket alone, when it may be: in `left_ms` [nominal ms]."""

    status = 103
    code = "later"

    def __init__(self, field: str | None, message: str, left_ms: float = 0.0) -> None:
        super().__init__(field, message)
        self.left_ms = left_ms


class Forgotten(Later):
    """Asked for by a ticket that nobody knows here: the gate asks again, with all of the request."""

    status = 102


class SpecError(ValueError):
    """An artifact or its `policy.json` is incomplete or contradicts itself."""


def _writable(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can bring in and UTF-8 can't send back."""
    return text.encode("utf-8", "replace").decode()
