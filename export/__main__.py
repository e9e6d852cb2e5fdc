"""Export a policy to an archive: compile it, compare it with the model, describe it, pack it.

For instance:

    python -m export my_robot/policy.py:make --output model_store/mine.mar
    python -m export checkpoints/grounded
    python -m export --from lerobot outputs/act --names meta/info.json --margin 0.5
    python -m export --from lerobot outputs/pi0 --names meta/info.json --margin 0.5 --tokenizer tokenizer.json
    python -m export --from openpi pi0_droid --robot droid --names names.json --margin 0.5 --tokenizer t.json
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from export.errors import ExportError
from export.export import Options, export
from vla_runtime.errors import SpecError


def main(arguments: Sequence[str] | None = None) -> None:
    """Export one policy; a refusal is one line on stderr and status 1."""
    options = tyro.cli(
        Annotated[Options, tyro.conf.OmitArgPrefixes],
        prog="python -m export",
        description=__doc__,
        args=arguments,
    )
    try:
        export(options)
    except (ExportError, SpecError) as error:
        sys.exit(f"export refused: {error}")


if __name__ == "__main__":
    main()
