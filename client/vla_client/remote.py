"""A policy behind an HTTP endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NoReturn, get_args
from urllib.parse import urlsplit

import msgspec
from urllib3 import BaseHTTPResponse, exceptions

from vla_client.chunk import ActionChunk
from vla_client.connection import Certificate, KeptConnectionClosed, pools
from vla_client.errors import InvalidAnswer, PolicyError, PolicyUnavailable, kind_of
from vla_client.observation import Observation, Sent

# Text of an unexpected answer that is worth showing [characters].
_EXCERPT = 200
_MSGPACK = "application/msgpack"

# How a request travels: multipart shows in every tool; msgpack is one raw body, which spares the server's
# front end the search for the parts' boundaries, and robot and worker the JSON.
Body = Literal["multipart", "msgpack"]


class RemotePolicy:
    """Asks the policy served at `url`, from any number of threads, over connections that are kept open.

    A failed request is not repeated: by then the observation is old, and the robot has a newer one. The one
    exception is a kept connection that turns out to be closed before any byte of the answer: the same request
    goes once more over a new one, inside the same timeout. That is safe, since an inference changes nothing.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = 1.0,
        model: str = "vla",
        encoding: Sent = "jpeg",
        *,
        body: Body | None = None,
        size: int | None = None,
        api_key: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        cert: Certificate | None = None,
        headers: Mapping[str, str] | None = None,
        connections: int = 8,
    ) -> None:
        """Prepare the connections; connects at the first request.

        Arguments:
            url: the server's root, for instance `http://127.0.0.1:8080`, or `https://robots.example.org/arm`.
            timeout_s: longest wait for the connection, and for the server to send anything [s].
            model: name of the served model; `vla/1.0` asks for one version.
            encoding: how image arrays are sent: "jpeg", "png", or "raw" pixels to a server on the same host.
            body: how requests and answers travel, "multipart" with JSON back, or "msgpack" both ways, which
                raw pixels need. None: what the encoding needs.
            size: the policy's picture size, `cameras[].width` of its description [pixels], where it crops the
                centre: image arrays are cut to it before they are encoded, which spares bytes and the
                server's decoding. None: sent whole.
            api_key: sent as `X-API-Key`.
            ca: file of the certificate authorities to trust; None: the system's.
            cert: the robot's own certificate, for mutual TLS: a PEM file with its key, or (certificate, key).
            headers: sent with every request.
            connections: open at once; a request beyond waits for one to be free, inside its timeout.

        Raises:
            ValueError: an argument is not one of those.
        """
        body = body or ("msgpack" if encoding == "raw" else "multipart")
        _check(url, timeout_s, encoding, body)
        for name, value in {"size": size, "connections": connections}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.url = f"{url.rstrip('/')}/predictions/{model}"
        self.connections = connections
        self._timeout_s = timeout_s
        self._encoding: Sent = encoding
        self._body: Body = body
        self._size = size
        self._headers = {**(headers or {}), **({"X-API-Key": api_key} if api_key else {})}
        self._pools = pools(connections, ca, cert)

    def infer(self, observation: Observation) -> ActionChunk:
        """Ask for the chunk of one observation.

        Raises:
            PolicyError: the server refused; carries its status, code, field and message.
            PolicyUnavailable: no connection, a broken one, or no answer within the timeout.
            InvalidAnswer: the answer is no chunk of finite actions.
        """
        request_id = uuid.uuid4().hex
        try:
            response = self._post(self._content(observation, request_id))
            if response.status != 200:
                raise _refusal(response, self.url)
            return ActionChunk.from_answer(_read(response, self.url))
        except (PolicyUnavailable, InvalidAnswer) as error:
            error.request_id = request_id
            raise

    def close(self) -> None:
        """Close the connections; a later `infer` opens new ones."""
        self._pools.clear()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _content(self, observation: Observation, request_id: str) -> dict[str, Any]:
        """Return the body and headers of a request, as arguments of `urllib3`."""
        headers = {**self._headers, "Accept": "application/json", "X-Request-Id": request_id}
        if observation.deadline_ms is not None:
            # What proxies set: the server takes the request's age from it, if both clocks agree.
            headers["X-Request-Start"] = f"t={time.time() * 1000:.0f}"
        images = observation.encoded(self._encoding, self._size)
        if self._body == "msgpack":
            headers.update({"Content-Type": _MSGPACK, "Accept": _MSGPACK})
            return {"body": msgspec.msgpack.encode({**observation.values(), **images}), "headers": headers}
        files = {field: data for field, data in images.items() if isinstance(data, bytes)}
        parts = {field: (field, data, _media_type(data)) for field, data in files.items()}
        return {"fields": {**observation.texts(), **parts}, "headers": headers}

    def _post(self, content: dict[str, Any]) -> BaseHTTPResponse:
        begin_s = time.monotonic()
        try:
            try:
                return self._send(content, self._timeout_s)
            except exceptions.ProtocolError as error:
                left_s = self._timeout_s - (time.monotonic() - begin_s)
                if not isinstance(error.__context__, KeptConnectionClosed) or left_s <= 0:
                    raise
                return self._send(content, left_s)
        except exceptions.HTTPError as error:
            self._explain(error)

    def _send(self, content: dict[str, Any], timeout_s: float) -> BaseHTTPResponse:
        return self._pools.request(
            "POST",
            self.url,
            **content,
            timeout=timeout_s,
            pool_timeout=timeout_s,
            retries=False,
            redirect=False,
        )

    def _explain(self, error: exceptions.HTTPError) -> NoReturn:
        """Raise what a robot's programmer can act on."""
        if isinstance(error, exceptions.EmptyPoolError):
            raise PolicyUnavailable(
                f"all {self.connections} connections to {self.url} were busy for {self._timeout_s} s: raise "
                "connections, or ask less often"
            ) from error
        if isinstance(error, exceptions.TimeoutError) and not isinstance(
            error, exceptions.NewConnectionError
        ):
            raise PolicyUnavailable(
                f"no answer from {self.url} within {self._timeout_s} s: is the server overloaded, "
                "or timeout_s too short?"
            ) from error
        if isinstance(error, exceptions.SSLError):
            raise PolicyUnavailable(
                f"no TLS with {self.url}: is it https, is ca the authority of its certificate, and does it "
                f"want a cert? ({_innermost(error)})"
            ) from error
        raise PolicyUnavailable(
            f"no connection to {self.url}: is the server running there? ({_innermost(error)})"
        ) from error


class AsyncPolicy:
    """The same for asyncio: `await policy.infer(observation)`, as many at once as there are connections.

    Requests run in threads, which encode pictures beside the event loop and use the same pooled connections.
    """

    def __init__(self, policy: RemotePolicy) -> None:
        """Ask through `policy`, which this closes at the end."""
        self._policy = policy
        self._threads = ThreadPoolExecutor(policy.connections, "policy")

    async def infer(self, observation: Observation) -> ActionChunk:
        """Ask for the chunk of one observation; raises as `RemotePolicy.infer` does.

        A cancelled request is not sent if it still waits for a connection; else its answer is dropped.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._policy.infer, observation
        )

    async def close(self) -> None:
        """Wait for the requests on their way, and close the connections."""
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        self._policy.close()

    async def __aenter__(self) -> AsyncPolicy:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _check(url: str, timeout_s: float, encoding: str, body: str) -> None:
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ValueError(f"url must begin with http:// or https://, got {url!r}")
    if timeout_s <= 0:
        raise ValueError(f"timeout_s must be positive, got {timeout_s}")
    if encoding not in get_args(Sent):
        raise ValueError(f"encoding must be one of {', '.join(get_args(Sent))}, got {encoding!r}")
    if body not in get_args(Body):
        raise ValueError(f"body must be one of {', '.join(get_args(Body))}, got {body!r}")
    if encoding == "raw" and body != "msgpack":
        raise ValueError("raw pixels need body='msgpack', got 'multipart'")


def _refusal(response: BaseHTTPResponse, url: str) -> PolicyError:
    """Read an error's body: this server's own, TorchServe's front end's, or whatever a proxy says."""
    status = response.status
    code, field, message = f"http_{status}", None, ""
    try:
        body: Any = _read(response, url)
    except InvalidAnswer:
        body = None
    error: Any = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        code, field, message = str(error.get("code", code)), error.get("field"), str(error.get("message", ""))
    elif isinstance(body, dict) and "message" in body:
        code, message = str(body.get("type", code)), str(body["message"])
    else:
        excerpt = response.data.decode("utf-8", "replace")[:_EXCERPT].strip()
        message = excerpt or f"{response.reason or 'no explanation'} from {url}"
    said = body.get("request_id") if isinstance(body, dict) else None
    return kind_of(status, code)(
        status,
        code,
        field,
        message,
        request_id=said or response.headers.get("X-Request-Id"),
        retry_after_s=_seconds(response.headers.get("Retry-After")),
    )


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None


def _read(response: BaseHTTPResponse, url: str) -> Any:
    """Decode an answer by its content type: msgpack where it says so, else JSON."""
    kind = response.headers.get("Content-Type", "no content type")
    try:
        return msgspec.msgpack.decode(response.data) if kind == _MSGPACK else json.loads(response.data)
    except (msgspec.DecodeError, ValueError) as error:
        named = "msgpack" if kind == _MSGPACK else "JSON"
        raise InvalidAnswer(f"the answer from {url} is not {named} ({kind}): {error}") from error


def _media_type(data: bytes) -> str:
    """Tell JPEG, PNG and WebP apart by their first bytes."""
    if data.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "application/octet-stream"


def _innermost(error: BaseException) -> BaseException:
    """Return the cause at the bottom: `Connection refused` instead of the pool's whole story."""
    while error.__context__ is not None:
        error = error.__context__
    return error
