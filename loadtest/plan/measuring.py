"""Measures what a server takes for a batch, for `python -m loadtest plan`.

An archive is served on this host meanwhile; a URL is that of a running server's inference API, whose
management and metrics ports follow it. Batch latency is the gate's own count, under closed loops of several
numbers of clients.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from archive.errors import ArchiveError
from loadtest import document
from loadtest.access import NOTHING, Access
from loadtest.answers import ContractError
from loadtest.document import Table
from loadtest.known import NotAsked
from loadtest.plan.closed_loop import CLIENTS, Served, curve_of, described, measure, save, serving, target_of
from loadtest.plan.curve import CurveError, summary
from loadtest.run import RunFailed


@dataclass(frozen=True)
class Options:
    """What is measured, and where the curve goes."""

    # An archive, or the root of a running server's inference API, such as http://127.0.0.1:8080.
    server: tyro.conf.Positional[str]
    # The curve.
    output: Path = Path("build/curve.json")
    # Clients of the closed loops.
    clients: tuple[int, ...] = CLIENTS
    # Time that each loop is measured [s].
    seconds: float = 4.0
    # Name of the model, of a URL.
    model: str = "vla"
    # Most requests of one batch, of a URL.
    largest: int = 32
    # How the clients get in, of a URL.
    access: Annotated[Access, tyro.conf.OmitArgPrefixes] = NOTHING


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the curve: 0; 2 a wrong command; 3 nothing could be measured."""
    options = tyro.cli(Options, prog="python -m loadtest curve", description=__doc__, args=arguments)
    try:
        if options.server.startswith(("http://", "https://")):
            target = target_of(options.server, options.model, options.access)
            return _measured(options, described(target, options.largest))
        with serving(Path(options.server)) as server:
            return _measured(options, server)
    except (ArchiveError, ContractError, CurveError, NotAsked, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ArchiveError) else 3


def _measured(options: Options, server: Served) -> int:
    loops = measure(server, clients=options.clients, seconds=options.seconds, say=print)
    curve = curve_of(server, loops)
    save(curve, options.output)
    print(document.markdown("", [Table(("measured", ""), list(summary(curve).items()))]))
    print(f"wrote {options.output}")
    return 0
