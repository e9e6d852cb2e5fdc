"""How TorchServe's Java front end is started."""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from server.errors import ServerError
from server.properties import ROOT


@dataclass(frozen=True)
class Memory:
    """Bounds of the Java front end's memory; the workers' is their own."""

    # Heap [MiB]: queue and open uploads, times the request size.
    heap_mib: int = 512
    # Network buffers [MiB].
    direct_mib: int = 256


USUAL_MEMORY = Memory()


def command_line(java: Path, memory: Memory, folder: Path, config: Path) -> list[str]:
    """Return the front end's command line; it ends with the process that starts it.

    The `torchserve` launcher is not used: it dies on SIGTERM and leaves Java and the workers behind.

    Args:
        java: the program
        memory: its bounds
        folder: of its temporary files
        config: its `config.properties`

    Raises:
        ServerError: TorchServe is not installed.
    """
    torchserve = importlib.util.find_spec("ts")
    if torchserve is None or torchserve.origin is None:
        raise ServerError("TorchServe is not installed here: pip install 'vla-serve[serve]'")
    package = Path(torchserve.origin).parent
    return [
        *(sys.executable, "-IS", str(ROOT / "server" / "with_parent.py"), str(os.getpid())),
        str(java),
        f"-Xmx{memory.heap_mib}m",
        f"-XX:MaxDirectMemorySize={memory.direct_mib}m",
        "-XX:+UseParallelGC",
        "-XX:+ExitOnOutOfMemoryError",
        f"-Dmodel_server_home={package.parent}",
        f"-Djava.io.tmpdir={folder}",
        f"-Dlog4j.configurationFile={(ROOT / 'log4j2.xml').as_uri()}",
        "-cp",
        str(package / "frontend" / "*"),
        "org.pytorch.serve.ModelServer",
        "--python",
        sys.executable,
        "-f",
        str(config),
        "-ncs",
    ]
