"""`python -m bench`: the served policy against the policy alone; `python -m bench gpu`: a GPU host."""

import sys


def main() -> int:
    """Run what the first argument names; each imports only what it needs."""
    if sys.argv[1:2] == ["gpu"]:
        from bench.gpu.check import main as check  # noqa: PLC0415

        return check(sys.argv[2:])
    from bench.run import main as run  # noqa: PLC0415

    return run()


if __name__ == "__main__":
    sys.exit(main())
