"""`python -m vla.training`: train a policy on demonstrations."""

import sys

import tyro

from vla.training.imitation import train
from vla.training.settings import Settings


def main() -> None:
    """Train as the command line says; exits with 1 and a message where that is refused."""
    try:
        train(tyro.cli(Settings))
    except ValueError as error:  # also SpecError and DatasetError
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
