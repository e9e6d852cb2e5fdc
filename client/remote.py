"""A policy behind an HTTP endpoint."""

import time
from typing import Any, Self, get_args
from urllib.parse import urlsplit

import requests

from client.chunk import ActionChunk
from client.errors import InvalidAnswer, PolicyError, PolicyUnavailable
from client.observation import Encoding, Observation
from client.one_write import OneWriteAdapter

# Text of an unexpected answer that is worth showing [characters].
_EXCERPT = 200


class RemotePolicy:
    """Asks the policy served at `url`. Keeps one connection open; one instance belongs to one thread.

    A failed request is not repeated: by then the observation is old, and the robot has a newer one.
    """

    def __init__(
        self, url: str, timeout_s: float = 1.0, model: str = "vla", encoding: Encoding = "jpeg"
    ) -> None:
        """Prepare a session; connects at the first request.

        Arguments:
            url: the server's root, for instance `http://127.0.0.1:8080`.
            timeout_s: longest wait for the connection, and for the server to send anything [s].
            model: name of the served model; `vla/1.0` asks for one version.
            encoding: how image arrays are sent, "jpeg" or "png".

        Raises:
            ValueError: an argument is not one of those.
        """
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"url must begin with http:// or https://, got {url!r}")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s}")
        if encoding not in get_args(Encoding):
            raise ValueError(f"encoding must be one of {', '.join(get_args(Encoding))}, got {encoding!r}")
        self.url = f"{url.rstrip('/')}/predictions/{model}"
        self._timeout_s = timeout_s
        self._encoding: Encoding = encoding
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
        images = observation.encoded(self._encoding)
        headers = {"Accept": "application/json"}
        if observation.deadline_ms is not None:
            # What proxies set: the server takes the request's age from it, if both clocks agree.
            headers["X-Request-Start"] = f"t={time.time() * 1000:.0f}"
        response = self._post(observation.values(), images, headers)
        if response.status_code != requests.codes.ok:
            raise _refusal(response)
        return ActionChunk.from_answer(_json(response))

    def close(self) -> None:
        """Close the connection; a later `infer` opens a new one."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(
        self, values: dict[str, str], images: dict[str, bytes], headers: dict[str, str]
    ) -> requests.Response:
        files = {field: (field, data, _media_type(data)) for field, data in images.items()}
        try:
            return self._session.post(
                self.url,
                data=values,
                files=files,
                headers=headers,
                timeout=self._timeout_s,
                allow_redirects=False,
            )
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


def _refusal(response: requests.Response) -> PolicyError:
    """Read an error's body: this server's own, TorchServe's front end's, or whatever a proxy says."""
    fallback = f"http_{response.status_code}"
    try:
        body: Any = response.json()
    except requests.JSONDecodeError:
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


def _json(response: requests.Response) -> object:
    try:
        return response.json()
    except requests.JSONDecodeError as error:
        kind = response.headers.get("Content-Type", "no content type")
        raise InvalidAnswer(f"the answer from {response.url} is not JSON ({kind}): {error}") from error


def _media_type(data: bytes) -> str:
    """Tell JPEG, PNG and WebP apart by their first bytes."""
    if data.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "application/octet-stream"


def _innermost(error: BaseException) -> str:
    """Say the cause at the bottom: `Connection refused` instead of the pool's whole story."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error)
