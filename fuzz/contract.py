"""Hooks of schemathesis: bodies in MessagePack, and which 5xx a client has asked for.

`python -m fuzz` runs schemathesis with this file; nothing else imports it.
"""

from typing import Any

import msgspec
import schemathesis

MSGPACK = "application/msgpack"


@schemathesis.serializer(MSGPACK)
def packed(_: Any, value: object) -> bytes:
    """Write a body; what MessagePack can't hold is sent as nothing."""
    try:
        return msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError):
        return b""


@schemathesis.deserializer(MSGPACK)
def unpacked(_: Any, response: Any) -> object:
    """Read an answer."""
    return msgspec.msgpack.decode(response.content)


@schemathesis.hook
def map_path_parameters(_: Any, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Ask the policy that is served: another one is no more than a 404."""
    named = {"policy": "vla", "version": "1.0"}
    return parameters and {name: named.get(name, value) for name, value in parameters.items()}


@schemathesis.check
def no_failure(_: Any, response: Any, case: Any) -> None:
    """No 5xx, but for a request that allows no time."""
    if response.status_code < 500:
        return
    body = response.content
    asked = isinstance(case.body, dict) and "deadline_ms" in case.body and b"deadline_expired" in body
    assert asked, f"{response.status_code}: {body[:300]!r}"
