"""What stops a server from serving, besides `archive.errors.ArchiveError`; each message says what to do.

ServerError
├── PortTaken      something else listens on a port
├── LoadFailed     a worker that was asked for died while it loaded, or took too long
├── StartFailed    TorchServe or a worker ended, or was not ready in time; ends with the last log lines
├── Stopped        TorchServe or its gate ended by itself, or requests were still open when the drain ended
└── SwapError      a new version was not taken over; the old one serves on
"""


class ServerError(RuntimeError):
    """The server can't serve."""


class PortTaken(ServerError):
    """One of the instance's ports is in use."""


class LoadFailed(ServerError):
    """A further worker did not become ready."""


class StartFailed(ServerError):
    """The archive's workers did not become ready."""


class Stopped(ServerError):
    """A running replica ended by itself, or did not drain."""


class SwapError(ServerError):
    """A new version was not taken over."""
