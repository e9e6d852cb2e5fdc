"""`python -m vla.evaluation`: closed-loop episodes against a served and an in-process policy."""

import sys

import tyro

from vla.evaluation.evaluate import Evaluation, evaluate, write
from vla.evaluation.report import misses
from vla_client import PolicyFailure
from vla_runtime.errors import RequestError, SpecError


def main() -> int:
    """Run the command line; returns 0, or 1 when a threshold is missed or the policy fails."""
    try:
        config = tyro.cli(Evaluation, prog="python -m vla.evaluation")
        config.out.mkdir(parents=True, exist_ok=True)
        results = evaluate(config)
    except (PolicyFailure, RequestError, SpecError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(write(config, results))
    thresholds = config.thresholds(config.require), config.thresholds(config.at_most)
    missed = misses(results[0], *thresholds)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
