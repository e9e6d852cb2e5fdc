"""What stops a server from serving; each message says what to do.

ServerError
├── ArchiveError   the archive is missing, damaged or no archive
├── PortTaken      something else listens on a port
└── StartFailed    TorchServe or a worker ended, or was not ready in time; ends with the last log lines
"""


class ServerError(RuntimeError):
    """The server can't serve."""


class ArchiveError(ServerError):
    """The archive can't be read."""


class PortTaken(ServerError):
    """One of the instance's ports is in use."""


class StartFailed(ServerError):
    """The archive's workers did not become ready."""
