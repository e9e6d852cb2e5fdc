"""What lets the robots of a load test into a deployment: an API key, certificates, headers."""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tyro


@dataclass(frozen=True)
class Access:
    """What every request to the inference API carries; nothing of it goes to another address.

    Raises:
        ValueError: a file is not there, or a header is none.
    """

    # Sent as X-API-Key; None: VLA_API_KEY of the environment, which other users can't see.
    api_key: str | None = None
    # File of the certificate authorities to trust; None: the system's.
    ca: Path | None = None
    # The robots' certificate, for mutual TLS.
    cert: Path | None = None
    # Its private key; None: in the same file.
    key: Path | None = None
    # Sent as well, as NAME:VALUE; may be given several times.
    header: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()

    def __post_init__(self) -> None:
        for option in ("ca", "cert", "key"):
            if (file := getattr(self, option)) is not None and not file.is_file():
                raise ValueError(f"--{option}: no certificate file at {file}")
        for header in self.header:
            if not header.partition(":")[1]:
                raise ValueError(f"--header must be NAME:VALUE, got {header!r}")

    @property
    def headers(self) -> dict[str, str]:
        """The headers by name."""
        pairs = (header.partition(":") for header in self.header)
        found = {name.strip(): value.strip() for name, _, value in pairs}
        key = self.api_key or os.environ.get("VLA_API_KEY")
        return found | ({"X-API-Key": key} if key else {})

    @property
    def for_requests(self) -> dict[str, Any]:
        """The certificates as arguments of `requests`."""
        cert = (str(self.cert), str(self.key)) if self.cert and self.key else self.cert and str(self.cert)
        return {"verify": str(self.ca) if self.ca else True, "cert": cert}

    def tls(self) -> ssl.SSLContext:
        """Return a context that checks the server's certificate and shows the robots'."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context

    def write(self, path: Path) -> Path:
        """Write it for the load generator's processes, readable to this user alone."""
        path.touch(0o600)
        path.write_bytes(msgspec.json.encode(self, enc_hook=lambda file: str(file.absolute())))
        return path

    @classmethod
    def read(cls, path: Path) -> "Access":
        """Read what `write` wrote."""
        return msgspec.json.decode(path.read_bytes(), type=cls, dec_hook=lambda kind, text: kind(text))


NOTHING = Access()
