"""Pooled HTTP connections that send a request's headers and body in one write.

The standard library writes them apart. Where Nagle's algorithm meets delayed acknowledgements, in a proxy on
the way for instance, the second write waits some 40 ms, which is more than a whole inference.
"""

from __future__ import annotations

import os
from http.client import RemoteDisconnected
from typing import Any, NoReturn, Union

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

# The client's certificate and its key: one PEM file with both, or (certificate, key).
Path = Union[str, "os.PathLike[str]"]
Certificate = Union[Path, tuple[Path, Path]]
# How a connection ends that the other side closed.
_HUNG_UP = (RemoteDisconnected, ConnectionResetError, BrokenPipeError)


class KeptConnectionClosed(ConnectionError):
    """A connection that had served was closed before any byte of an answer: the server was idle too long."""


class _OneWrite(HTTPConnection):
    """Holds back what a request sends until it is whole."""

    _held: list[bytes] | None = None
    # Whether this connection has answered a request before.
    _served = False

    def connect(self) -> None:
        self._served = False
        super().connect()

    def request(self, *arguments: Any, **options: Any) -> None:
        self._held = []
        try:
            super().request(*arguments, **options)
            whole = b"".join(self._held)
        finally:
            self._held = None
        try:
            super().send(whole)
        except _HUNG_UP as error:
            self._raise(error)

    def send(self, data: Any) -> None:
        if self._held is None:
            super().send(data)
        else:
            self._held.append(bytes(data))

    def getresponse(self, *arguments: Any, **options: Any) -> Any:
        try:
            response = super().getresponse(*arguments, **options)
        except _HUNG_UP as error:
            self._raise(error)
        self._served = True
        return response

    def _raise(self, error: Exception) -> NoReturn:
        if self._served:
            raise KeptConnectionClosed(str(error)) from error
        raise error


class _OneWriteTLS(_OneWrite, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    # urllib3's protocol calls mutable what its own classes declare final, hence the ignores.
    ConnectionCls = _OneWrite  # pyright: ignore[reportAssignmentType]


class _PoolTLS(HTTPSConnectionPool):
    ConnectionCls = _OneWriteTLS  # pyright: ignore[reportAssignmentType]


def pools(connections: int, ca: Path | None = None, cert: Certificate | None = None) -> PoolManager:
    """Return pools of up to `connections` connections; a request beyond waits for one.

    Args:
        connections: at once, to one server
        ca: file of the certificate authorities to trust instead of the system's
        cert: what the client proves itself with

    Raises:
        ValueError: a file is not there.
    """
    certificate, key = cert if isinstance(cert, tuple) else (cert, None)
    files = {"ca_certs": ca, "cert_file": certificate, "key_file": key}
    given: dict[str, Any] = {name: os.fspath(file) for name, file in files.items() if file is not None}
    for file in given.values():
        if not os.path.isfile(file):
            raise ValueError(f"no certificate file at {file}")
    manager = PoolManager(maxsize=connections, block=True, cert_reqs="CERT_REQUIRED", **given)
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _PoolTLS}
    return manager
