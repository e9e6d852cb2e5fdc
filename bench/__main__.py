"""`python -m bench`: see `bench.command`; `python -m bench gpu` checks a GPU host."""

import sys

from loadtest.extra import needed

if __name__ == "__main__":
    if sys.argv[1:2] == ["gpu"]:
        with needed("bench"):
            from bench.gpu.check import main as check

        sys.exit(check(sys.argv[2:]))
    with needed("bench"):
        from bench.command import main

    sys.exit(main())
