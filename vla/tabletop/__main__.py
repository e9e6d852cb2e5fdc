"""``python -m vla.tabletop``: collect demonstrations."""

import sys

import tyro

from vla.tabletop.collection import Collection, collect


def main() -> None:
    """Collect a data set as the command line says; exits with 1 and a message where that is refused."""
    try:
        config = tyro.cli(Collection, prog="python -m vla.tabletop")
        dataset = collect(config)
    except (FileExistsError, ValueError) as error:
        sys.exit(f"error: {error}")
    about = dataset.description
    print(
        f"{config.out}: {about.frames} frames of {about.episodes} episodes, success {about.success_rate:.3f}"
    )


if __name__ == "__main__":
    main()
