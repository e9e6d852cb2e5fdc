"""Provoke faults and attacks on real servers, and write docs/faults.md.

By default each fault that has no result in `output` yet; with `--only hung drain` those whose names hold one
of these words, anew.
"""

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from bench.faults import beside, memory, page, table


@dataclass(frozen=True)
class Options:
    """What to provoke."""

    # Faults, or attacks, by words of their names; default: all faults without a result, or all attacks.
    only: tuple[str, ...] = ()
    # Attack beside eight good robots instead.
    attacks: bool = False
    # Ask for far more than the server can answer instead, beside eight good robots of another key.
    overload: bool = False
    # Read the server's memory over so many requests instead.
    memory: int = 0
    # Time of each attack, or of the overload [s].
    seconds: float = 60.0
    # The archive that attacks, overload and memory are measured with.
    archive: Path = Path("model_store/vla.mar")
    # Provoke again what has a result.
    anew: bool = False
    # Folder of the results, a JSON file each.
    output: Path = Path("build/faults")
    # The page to write.
    page: Path = Path("docs/faults.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and write the page: 0. Something did not survive its fault, or robots noticed an attack: 1."""
    options = tyro.cli(Options, prog="python -m bench faults", description=__doc__, args=arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    folder = options.output
    if options.attacks:
        beside.attacks(options.archive, folder, options.seconds, options.only)
    if options.overload:
        beside.overload(options.archive, folder, options.seconds)
    if options.memory:
        memory.run(options.archive, folder, options.memory)
    if not (options.attacks or options.overload or options.memory):
        table.run(folder, options.only, anew=options.anew)
    found = page.Found(
        table.read(folder),
        beside.read(folder, "attack"),
        beside.read(folder, "overload"),
        memory.read(folder),
    )
    page.write(options.page, found)
    print(f"wrote {options.page}")
    return 0 if all(map(table.survived, found.faults)) and all(result.kept for result in found.attacks) else 1
