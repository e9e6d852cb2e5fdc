"""An HTTP adapter that sends a request's headers and body in one write.

The standard library writes them apart. Where Nagle's algorithm meets delayed acknowledgements, in a proxy on
the way for instance, the second write waits some 40 ms, which is more than a whole inference.
"""

from __future__ import annotations

from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection


class _OneWrite(HTTPConnection):
    """Holds back what a request sends until it is whole."""

    _held: list[bytes] | None = None

    def request(self, *arguments: Any, **options: Any) -> None:
        self._held = []
        try:
            super().request(*arguments, **options)
            whole = b"".join(self._held)
        finally:
            self._held = None
        super().send(whole)

    def send(self, data: Any) -> None:
        if self._held is None:
            super().send(data)
        else:
            self._held.append(bytes(data))


class _OneWriteTLS(_OneWrite, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    # urllib3's protocol calls mutable what its own classes declare final, hence the ignores.
    ConnectionCls = _OneWrite  # pyright: ignore[reportAssignmentType]


class _PoolTLS(HTTPSConnectionPool):
    ConnectionCls = _OneWriteTLS  # pyright: ignore[reportAssignmentType]


class OneWriteAdapter(HTTPAdapter):
    """`requests`' adapter over such connections: mount it on a session."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make the pools use connections of one write."""
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _PoolTLS}
