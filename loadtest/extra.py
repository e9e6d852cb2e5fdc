"""What a program needs beyond the standard library, and what to do where it is missing."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

WRONG_COMMAND = 2


@contextmanager
def needed(extra: str, *started: str) -> Iterator[None]:
    """Import inside it: where a package is missing, the program ends with one line and status 2.

    `started` are packages that a process of their own imports.
    """
    try:
        yield
        for package in started:
            if find_spec(package) is None:
                raise ModuleNotFoundError(name=package)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == extra:
            raise
        print(
            f"error: {package} is not installed: `make .venv/.{extra}` brings what this needs, or "
            f"`pip install -e '.[{extra}]'`",
            file=sys.stderr,
        )
        sys.exit(WRONG_COMMAND)
