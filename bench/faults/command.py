"""Provoke faults and attacks on real servers, and write docs/faults.md.

By default each fault that has no result in `output` yet; with `--only hung drain` those whose names hold one
of these words, anew.
"""

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bench.faults import page, table


@dataclass(frozen=True)
class Options:
    """What to provoke."""

    # Faults by words of their names; default: all without a result.
    only: tuple[str, ...] = ()
    # Provoke again what has a result.
    anew: bool = False
    # Folder of the results, a JSON file each.
    output: Path = Path("build/faults")
    # The page to write.
    page: Path = Path("docs/faults.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and write the page: 0. Something did not survive its fault: 1."""
    options = tyro.cli(
        Annotated[Options, tyro.conf.OmitArgPrefixes],
        prog="python -m bench faults",
        description=__doc__,
        args=arguments,
    )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    results = table.run(options.output, options.only, anew=options.anew)
    page.write(options.page, results)
    print(f"wrote {options.page}")
    return 0 if all(table.survived(result) for result in results) else 1
