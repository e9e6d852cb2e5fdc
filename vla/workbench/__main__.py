"""``python -m vla.workbench``: collect demonstrations at the workbench."""

import sys

import tyro

from vla.workbench.collection import Collection, collect


def main() -> None:
    """Collect a data set as the command line says; exits with 1 and a message where that is refused."""
    try:
        config = tyro.cli(Collection, prog="python -m vla.workbench")
        about = collect(config).description
    except (FileExistsError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(
        f"{config.out}: {about.frames} frames of {about.episodes} episodes, {about.finished} tasks finished"
    )


if __name__ == "__main__":
    main()
