"""`python -m vla.training`: train a policy on demonstrations."""

import shlex
import sys
from dataclasses import dataclass, fields

import tyro

from vla import checkpoint
from vla.training.imitation import train
from vla.training.settings import Settings


@dataclass(frozen=True)
class CommandLine(Settings):
    """Train a policy on demonstrations and write its checkpoint."""

    # Train anew into a folder that has a run already, and lose that.
    overwrite: bool = False


def main() -> None:
    """Train as the command line says; exits with 1 and a message where that is refused."""
    given = tyro.cli(CommandLine, prog="python -m vla.training", description=CommandLine.__doc__)
    settings = Settings(**{field.name: getattr(given, field.name) for field in fields(Settings)})
    earlier = [name for name in ("progress.json", checkpoint.WEIGHTS) if (settings.out / name).exists()]
    if earlier and not settings.resume and not given.overwrite:
        sys.exit(
            f"error: {settings.out} holds a run already ({', '.join(earlier)}): go on with it by --resume, "
            "replace it by --overwrite, or name another folder by --out"
        )
    try:
        train(settings)
    except (ValueError, OSError) as error:  # also SpecError and DatasetError
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        again = [argument for argument in sys.argv[1:] if argument not in ("--overwrite", "--resume")]
        sys.exit(f"\ninterrupted; go on with: python -m vla.training {shlex.join([*again, '--resume'])}")


if __name__ == "__main__":
    main()
