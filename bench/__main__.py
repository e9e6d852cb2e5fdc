"""`python -m bench`: see `bench.command`; beside it `python -m bench gpu` and `python -m bench overlap`."""

import sys

from loadtest.extra import needed

if __name__ == "__main__":
    if sys.argv[1:2] == ["gpu"]:
        with needed("bench"):
            from bench.gpu.check import main as check

        sys.exit(check(sys.argv[2:]))
    if sys.argv[1:2] == ["overlap"]:
        with needed("bench"):
            from bench.overlap import main as overlap

        sys.exit(overlap(sys.argv[2:]))
    with needed("bench"):
        from bench.command import main

    sys.exit(main())
