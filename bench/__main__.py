"""`python -m bench`: see `bench.command`; each of PROGRAMS after it is a measurement of its own."""

import importlib
import sys

from loadtest.extra import needed

PROGRAMS = {
    "compare": "bench.compare.comparison",
    "compress": "bench.compress.command",
    "faults": "bench.faults.command",
    "formats": "bench.formats",
    "gpu": "bench.gpu.check",
    "overlap": "bench.overlap",
}

if __name__ == "__main__":
    named = PROGRAMS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    with needed("bench"):
        program = importlib.import_module(named or "bench.command")
    sys.exit(program.main(sys.argv[2 if named else 1 :]))
