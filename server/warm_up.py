"""Posts the archived example: the Java front end is several times slower in its first hundred requests."""

import time

import requests

from archive.read import Example
from server.errors import ServerError
from server.process import TorchServe

# A policy that takes most of the time itself gains nothing by more requests [s].
LONGEST_S = 20.0


def warm_up(server: TorchServe, count: int) -> None:
    """Post the archived example `count` times, at most for LONGEST_S; an archive without one is left cold.

    Raises:
        ServerError: the example is refused.
    """
    for archive in server.archives:
        if archive.example is not None:
            _warm_up(server, f"{server.url}/predictions/{archive.name}", archive.example, count)


def _warm_up(server: TorchServe, url: str, example: Example, count: int) -> None:
    end = time.monotonic() + LONGEST_S
    with requests.Session() as session:
        for place in range(count):
            if place and time.monotonic() > end:
                break
            answer = post_example(session, url, example, server.startup_timeout_s)
            if not answer.ok:
                raise ServerError(
                    f"the archived example got {answer.status_code}: {answer.text}\n{server.log_tail()}"
                )


def post_example(
    session: requests.Session, url: str, example: Example, timeout_s: float
) -> requests.Response:
    """Post an archived example request to `url`."""
    return session.post(url, files=example.images, data=example.fields, timeout=timeout_s)
