"""The ports of an instance: which they are, whether they are free."""

import contextlib
import random
import socket

from server.errors import PortTaken

# What each port of an instance does, by its distance from `port`.
PORTS = ("inference", "management", "metrics", "gRPC inference", "gRPC management")
# Behind a gate TorchServe's own inference and metrics follow.
GATED = 2
LARGEST = 65_535 - (len(PORTS) + GATED - 1)


def free_port() -> int:
    """Return a port that is free together with the following ones that an instance and its gate need."""
    for port in random.sample(range(20_000, 32_000, 20), k=100):  # below the range of outgoing connections
        with contextlib.suppress(PortTaken):
            for offset in range(len(PORTS) + GATED):
                bind("127.0.0.1", port + offset, "", offset).close()
            return port
    raise PortTaken("no free range of ports between 20000 and 32000")


def bind(host: str, port: int, use: str, offset: int) -> socket.socket:
    """Return a socket that is bound and does not listen yet.

    Args:
        host: its address
        port: its port
        use: what it is for
        offset: from `--port`, for the message

    Raises:
        PortTaken: something else has it.
    """
    if not 0 < port <= LARGEST + offset:
        raise PortTaken(f"port must be from 1 to {LARGEST}, got {port - offset} (--port)")
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        option = f"--port + {offset}" if offset else "--port"
        raise PortTaken(
            f"port {port} ({use}, {option}) can't be used: {error.strerror}; "
            "stop what listens there, or choose another --port"
        ) from error
    return bound
