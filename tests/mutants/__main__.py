"""`make mutants`: put small faults into the code, one at a time: which of them do the unit tests notice?

Nothing in the checkout is changed: the faults go into a copy. Of the tests only those run that call the
function at fault, the fastest first. Results are kept in build/mutants: a fault that was noticed is not tried
again as long as its file stays the same; one that was missed is.
"""

import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from mutants.checkout import ROOT, Checkout, Collected, Ran
from mutants.faults import Fault, mutated
from mutants.results import KEPT, Result, files, table

# Code, and the tests that are to notice its faults.
TESTS = {
    "handlers/vla_runtime": ("tests/unit/runtime",),
    "server": ("tests/unit/server", "tests/server/test_java.py"),
    "client/vla_client": ("tests/unit/client",),
}
# Imported once, for all processes; nothing of it is under test.
PRELOADED = ("torch", "tokenizers", "PIL.Image", "simplejpeg", "hypothesis.strategies", "requests")


@dataclass(frozen=True)
class Options:
    """Which faults to put in, and how."""

    # Files or folders, such as handlers/vla_runtime/safety.py.
    only: tuple[str, ...] = tuple(TESTS)
    # Most faults of one file, drawn at random with seed 0.
    most: int = 10_000
    # Leave out tests that take more of a processor than this [s].
    slowest_s: float = 3.0
    # A fault is noticed, too, when the tests take four times as long as without it, and this much longer [s].
    patience_s: float = 20.0
    # Print the table of the results that are kept, and try nothing.
    report: bool = False


def chosen(ran: list[Ran], path: str, fault: Fault) -> tuple[list[str], float]:
    """Return the tests that are to notice a fault, and how long they take without it [s].

    Those that call its function; outside functions all, those that call anything of its file first.
    """
    if fault.function is not None:
        found = [test for test in ran if f"{path}:{fault.function}" in test.called]
    else:
        found = sorted(ran, key=lambda test: not any(place.startswith(f"{path}:") for place in test.called))
    return [test.test for test in found], sum(test.took_s for test in found)


def contents(*paths: str) -> list[bytes]:
    """Read every Python file in some files or folders of the checkout."""
    found = [file for path in paths for file in [ROOT / path, *sorted((ROOT / path).rglob("*.py"))]]
    return [file.read_bytes() for file in found if file.is_file()]


class Attempt:
    """The faults of one package, put in one after another."""

    def __init__(self, checkout: Checkout, package: str, results: list[Result], options: Options) -> None:
        self._checkout, self._results, self._options = checkout, results, options
        self._tests = TESTS[package]
        digest = hashlib.sha256(b"".join(contents(package, *self._tests))).hexdigest()[:16]
        self._recorded = KEPT / f"recorded-{digest}.json"

    def run(self) -> None:
        """First the faults in functions, then the others."""
        self._checkout.collect(self._tests, self._in_functions)
        for result in self._results:
            result.read()
            self._try(result, None)

    def _in_functions(self, collected: Collected) -> None:
        if not self._recorded.exists():
            print(f"running {' '.join(self._tests)} once, to see what each test calls")
            collected.record(self._recorded)
        for result in self._results:
            self._try(result, collected)

    def _try(self, result: Result, collected: Collected | None) -> None:
        ran = self._ran()
        left = [fault for fault in result.drawn if fault.key not in result.noticed]
        for fault in tqdm(left, desc=result.path, unit="fault"):
            tests, took_s = chosen(ran, result.path, fault)
            noticed = self._notices(result, fault, collected, tests, self._options.patience_s + 4 * took_s)
            if noticed is not None:
                result.noticed[fault.key] = noticed
                result.keep()
            if noticed is False and fault.key not in result.equal():
                tqdm.write(
                    f"missed by {len(tests)} tests: {result.path}:{fault.line}: {fault.code}: {fault.change}"
                )

    def _notices(
        self, result: Result, fault: Fault, collected: Collected | None, tests: list[str], timeout_s: float
    ) -> bool | None:
        tree = mutated(result.source, fault)
        if not tests:
            return False
        if collected is None:
            return not self._checkout.passes(result.path, tree, tests, timeout_s)
        if fault.function is None:
            return None
        return collected.notices(result.path, tree, fault.function, tests, timeout_s)

    def _ran(self) -> list[Ran]:
        ran, failed = json.loads(self._recorded.read_text())
        for test in failed:
            tqdm.write(f"left out, as it fails without any fault: {test}")
        found = [Ran(**test) for test in ran if test["cpu_s"] <= self._options.slowest_s]
        return sorted(found, key=lambda test: test.took_s)


def main(options: Options) -> int:
    """Return how many faults were missed, at most 100."""
    results = [Result.of(path, options.most) for path in files(options.only)]
    if not options.report:
        for name in PRELOADED:
            __import__(name)
        with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
            checkout = Checkout(Path(temporary))
            for package in TESTS:
                if inside := [result for result in results if result.path.startswith(f"{package}/")]:
                    for result in inside:
                        result.forget_missed()
                    Attempt(checkout, package, inside, options).run()
    for result in results:
        for fault in result.missed():
            print(f"missed: {result.path}:{fault.line}: {fault.code}: {fault.change}")
    print(f"\n{table(results)}")
    return min(100, sum(len(result.missed()) for result in results))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, prog="make mutants", description=__doc__)))
