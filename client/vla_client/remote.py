"""A policy behind an HTTP endpoint."""

from __future__ import annotations

import time
from http.client import RemoteDisconnected
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import msgspec
import requests

from vla_client.chunk import ActionChunk
from vla_client.errors import InvalidAnswer, PolicyError, PolicyUnavailable
from vla_client.observation import Encoding, Observation
from vla_client.one_write import OneWriteAdapter

# Text of an unexpected answer that is worth showing [characters].
_EXCERPT = 200
_MSGPACK = "application/msgpack"
# How a kept connection ends that the server closed while it was idle.
_HUNG_UP = (RemoteDisconnected, ConnectionResetError, BrokenPipeError)

# How a request travels: multipart shows in every tool; msgpack is one raw body, which spares the server's
# front end the search for the parts' boundaries, and robot and worker the JSON.
Body = Literal["multipart", "msgpack"]


class RemotePolicy:
    """Asks the policy served at `url`. Keeps one connection open; one instance belongs to one thread.

    A failed request is not repeated: by then the observation is old, and the robot has a newer one. The one
    exception is a kept connection that turns out to be closed before any byte of the answer: the same request
    goes once more over a new one, inside the same timeout. That is safe, since an inference changes nothing.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = 1.0,
        model: str = "vla",
        encoding: Encoding = "jpeg",
        *,
        body: Body = "multipart",
        size: int | None = None,
    ) -> None:
        """Prepare a session; connects at the first request.

        Arguments:
            url: the server's root, for instance `http://127.0.0.1:8080`.
            timeout_s: longest wait for the connection, and for the server to send anything [s].
            model: name of the served model; `vla/1.0` asks for one version.
            encoding: how image arrays are sent, "jpeg" or "png".
            body: how requests and answers travel, "multipart" with JSON back, or "msgpack" both ways.
            size: the policy's picture size, `cameras[].size` of its description [pixels]: image arrays are
                cut to it before they are encoded, which spares bytes and the server's decoding. None: sent
                whole.

        Raises:
            ValueError: an argument is not one of those.
        """
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"url must begin with http:// or https://, got {url!r}")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s}")
        if encoding not in get_args(Encoding):
            raise ValueError(f"encoding must be one of {', '.join(get_args(Encoding))}, got {encoding!r}")
        if body not in get_args(Body):
            raise ValueError(f"body must be one of {', '.join(get_args(Body))}, got {body!r}")
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        self.url = f"{url.rstrip('/')}/predictions/{model}"
        self._timeout_s = timeout_s
        self._encoding: Encoding = encoding
        self._body: Body = body
        self._size = size
        self._kept = False  # whether the session holds a connection that has served
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, OneWriteAdapter(max_retries=0))

    def infer(self, observation: Observation) -> ActionChunk:
        """Ask for the chunk of one observation.

        Raises:
            PolicyError: the server refused; carries its status, code, field and message.
            PolicyUnavailable: no connection, a broken one, or no answer within the timeout.
            InvalidAnswer: the answer is no chunk of finite actions.
        """
        content = self._content(observation)
        if observation.deadline_ms is not None:
            # What proxies set: the server takes the request's age from it, if both clocks agree.
            content["headers"]["X-Request-Start"] = f"t={time.time() * 1000:.0f}"
        response = self._post(content)
        if response.status_code != requests.codes.ok:
            raise _refusal(response)
        return ActionChunk.from_answer(_read(response))

    def close(self) -> None:
        """Close the connection; a later `infer` opens a new one."""
        self._session.close()
        self._kept = False

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _content(self, observation: Observation) -> dict[str, Any]:
        """Return the body and headers of a request, as arguments of `requests`."""
        images = observation.encoded(self._encoding, self._size)
        if self._body == "msgpack":
            headers = {"Content-Type": _MSGPACK, "Accept": _MSGPACK}
            return {"data": msgspec.msgpack.encode({**observation.values(), **images}), "headers": headers}
        files = {field: (field, data, _media_type(data)) for field, data in images.items()}
        return {"data": observation.texts(), "files": files, "headers": {"Accept": "application/json"}}

    def _post(self, content: dict[str, Any]) -> requests.Response:
        begin_s, kept = time.monotonic(), self._kept
        self._kept = False
        try:
            try:
                response = self._send(content, self._timeout_s)
            except requests.ConnectionError as error:
                left_s = self._timeout_s - (time.monotonic() - begin_s)
                if not (kept and isinstance(_innermost(error), _HUNG_UP) and left_s > 0):
                    raise
                response = self._send(content, left_s)
        except requests.Timeout as error:
            raise PolicyUnavailable(
                f"no answer from {self.url} within {self._timeout_s} s: is the server overloaded, "
                "or timeout_s too short?"
            ) from error
        except requests.ConnectionError as error:
            raise PolicyUnavailable(
                f"no connection to {self.url}: is the server running there? ({_innermost(error)})"
            ) from error
        except requests.RequestException as error:
            raise PolicyUnavailable(f"no answer from {self.url}: {error}") from error
        self._kept = True
        return response

    def _send(self, content: dict[str, Any], timeout_s: float) -> requests.Response:
        return self._session.post(self.url, **content, timeout=timeout_s, allow_redirects=False)


def _refusal(response: requests.Response) -> PolicyError:
    """Read an error's body: this server's own, TorchServe's front end's, or whatever a proxy says."""
    fallback = f"http_{response.status_code}"
    try:
        body: Any = _read(response)
    except InvalidAnswer:
        body = None
    if isinstance(body, dict):
        error = body.get("error")
        if isinstance(error, dict):
            return PolicyError(
                response.status_code,
                str(error.get("code", fallback)),
                error.get("field"),
                str(error.get("message", "")),
            )
        if "message" in body:
            kind = str(body.get("type", fallback))
            return PolicyError(response.status_code, kind, None, str(body["message"]))
    text = response.text[:_EXCERPT].strip() or f"{response.reason or 'no explanation'} from {response.url}"
    return PolicyError(response.status_code, fallback, None, text)


def _read(response: requests.Response) -> Any:
    """Decode an answer by its content type: msgpack where it says so, else JSON."""
    kind = response.headers.get("Content-Type", "no content type")
    try:
        return msgspec.msgpack.decode(response.content) if kind == _MSGPACK else response.json()
    except (msgspec.DecodeError, requests.JSONDecodeError) as error:
        named = "msgpack" if kind == _MSGPACK else "JSON"
        raise InvalidAnswer(f"the answer from {response.url} is not {named} ({kind}): {error}") from error


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
