"""`python -m loadtest`: see `loadtest.command`; each of PROGRAMS after it is a program of its own."""

import importlib
import sys

from loadtest.extra import needed

PROGRAMS = {"curve": "loadtest.plan.measuring", "plan": "loadtest.plan.command"}

if __name__ == "__main__":
    named = PROGRAMS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    with needed("loadtest", "locust"):
        program = importlib.import_module(named or "loadtest.command")
    sys.exit(program.main(sys.argv[2 if named else 1 :]))
